"""The files around the code: workflows, templates, hooks and citation say what is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: pip install '.[test]'")

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TEMPLATES = [path for path in sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")) if path.stem != "config"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
PINS = dict(re.findall(r"^([\w-]+)==([^\s;]+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def jobs(path):
    return read(path)["jobs"]


def commands(path):
    return [step["run"] for job in jobs(path).values() for step in job["steps"] if "run" in step]


def test_there_are_workflows():
    assert {path.name for path in WORKFLOWS} == {"ci.yml", "release.yml"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_calls_what_exists(path):
    for job in jobs(path).values():
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])
        assert set(job.get("needs", [])) <= set(jobs(path)) or job["needs"] in jobs(path)
    for command in commands(path):
        assert set(re.findall(r"\bmake ([a-z-]+)", command)) <= TARGETS
        for file in re.findall(r"(?:^|\s)((?:tools/|\.ci/)[\w./]+)", command):
            assert (ROOT / file).is_file(), file


def test_ci_runs_everything():
    assert ".ci/run" in commands(ROOT / ".github/workflows/ci.yml")


def test_what_is_published_is_tested_and_no_password_is_kept():
    release = jobs(ROOT / ".github/workflows/release.yml")
    publish = release["publish"]
    assert set(publish["needs"]) == set(release) - {"publish"}
    assert publish["permissions"]["id-token"] == "write"
    assert publish["if"] == "startsWith(github.ref, 'refs/tags/v')"
    assert "secrets." not in (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8")
    assert PINS["torch"] in release["torch"]["strategy"]["matrix"]["torch"]


def test_every_python_of_the_classifiers_gets_a_wheel():
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    versions = re.findall(r"Python :: 3\.(\d+)", settings)
    assert re.search(r'^build = "cp31\?-\*"$', settings, re.MULTILINE)  # 3.10 to 3.19: those that are out
    assert jobs(ROOT / ".github/workflows/release.yml")["cuda"]["strategy"]["matrix"]["python"] == [
        f"3{minor}" for minor in versions
    ]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_an_issue_template_is_a_form(path):
    form = read(path)
    assert set(form) == {"name", "description", "labels", "body"}
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids) > 0
    for field in form["body"]:
        assert field["type"] in {"textarea", "input", "dropdown", "checkboxes"}
        assert field["attributes"]["label"]


def test_hooks_use_the_pinned_versions():
    hooks = [hook for repo in read(ROOT / ".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]
    pinned = [line for hook in hooks for line in hook.get("additional_dependencies", [])]
    assert {line.partition("==")[0] for line in pinned} == {"ruff", "clang-format"}
    assert all(line == f"{name}=={PINS[name]}" for line in pinned for name in [line.partition("==")[0]])
    for hook in hooks:
        program, _, target = hook["entry"].partition(" ")
        assert program != "make" or target in TARGETS


def test_citation_has_what_its_format_asks_for():
    citation = read(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # required by version 1.2.0
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert f'license = "{citation["license"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(author["name"] for author in citation["authors"])
