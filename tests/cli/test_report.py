"""``fusestep report``: what a page shows of runs that ended, died, or were written by another version."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from fusestep.cli import main
from fusestep.report import load_run, load_runs, render_page

CHROMIUM = shutil.which("chromium")


def line(step, **more):
    values = {"step": step, "loss": 5 / step, "val_loss": 4 / step if step % 3 == 0 else None, "lr": 1e-3 / step}
    return json.dumps({**values, "grad_norm": 2.0, "tokens": 100 * step, "seconds": 0.5 * step, **more})


def make(path, lines=None, *, settings=None, sample="Once <b>upon</b> a time", config=True):
    path.mkdir(parents=True)
    text = "\n".join([line(step) for step in range(1, 7)] if lines is None else lines) + "\n"
    (path / "metrics.jsonl").write_text(text, encoding="utf-8")
    if config:
        facts = {"settings": {"lr": 0.1, "text": [], **(settings or {})}, "machine": {"cpu": "abacus"}, "torch": "9.9"}
        (path / "config.json").write_text(json.dumps({**facts, "baseline_loss": 3.5}), encoding="utf-8")
    (path / "sample.txt").write_text(sample, encoding="utf-8")
    return path


class Page(HTMLParser):
    """Rows of the tables, images, and everything that would be fetched."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.images, self.fetched, self._cell = [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self._cell = self._cell or tag in ("td", "th")
        if tag == "tr":
            self.rows.append([])
        if tag == "img":
            self.images.append(attributes)
        self.fetched += [v for k, v in attributes.items() if k in ("src", "srcset", "href")]
        self.fetched += [tag] if tag in ("script", "link") else []

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, text):
        if self._cell:
            self.rows[-1].append(text)


def test_the_page_of_two_runs(tmp_path):
    runs = load_runs([make(tmp_path / "one"), make(tmp_path / "two", settings={"lr": 0.2})])
    text = render_page(runs)
    page = Page(text)
    assert page.rows[0][1:4] == ["steps", "training loss", "validation loss"]
    results = [" ".join(row) for row in page.rows[1:3]]
    for result, name in zip(results, ("one", "two"), strict=True):
        for value in (name, "6", "0.8333", "0.6667 at step 6", "600", "3 s", "200"):
            assert value in result
    assert ["lr", "0.1", "0.2"] in page.rows
    assert sum(row[:1] == ["text"] for row in page.rows) == 1  # in the settings, not in what differs
    assert ["cpu", "abacus", "abacus"] in page.rows
    assert ["torch", "9.9", "9.9"] in page.rows
    assert "Once &lt;b&gt;upon&lt;/b&gt; a time" in text
    # One file: nothing is fetched, and what the pictures show is said in words.
    assert len(page.images) == 5
    assert all(len(image["alt"]) > 20 and "one, two" in image["alt"] for image in page.images)
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.fetched)
    assert len(page.fetched) == 10  # light and dark
    for source in page.fetched:
        svg = base64.b64decode(source.partition(",")[2])
        assert b"</svg>" in svg
        assert b"#0072b2" in svg
        assert b"#d55e00" in svg
    assert text == render_page(runs)


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = load_runs([make(tmp_path / "x" / "run"), make(tmp_path / "y" / "run")])
    assert [run.name for run in runs] == [str(tmp_path / "x" / "run"), str(tmp_path / "y" / "run")]


def test_a_run_that_died_or_diverged(tmp_path):
    lines = [line(1), line(2, loss=None, grad_norm=None), "{nonsense", line(3), line(4)[:20]]
    run = load_run(make(tmp_path / "died", lines))
    assert [step.step for step in run.steps] == [1, 2, 3]
    assert run.steps[1].loss != run.steps[1].loss  # NaN
    assert run.problems == [
        "Line 3 of metrics.jsonl cannot be read: it is left out.",
        "Line 5 of metrics.jsonl is cut short: it is left out.",
    ]
    text = render_page([run])
    assert "Line 5 of metrics.jsonl is cut short" in text
    assert len(Page(text).images) == 5


def test_a_run_of_another_version(tmp_path):
    old = json.dumps({"step": 1, "loss": 2.0, "temperature": 3})
    run = load_run(make(tmp_path / "old", [old], config=False))
    assert run.steps[0].loss == 2.0
    assert run.steps[0].val_loss is None
    assert run.problems == [
        "There is no config.json: the settings of the run are not known.",
        "metrics.jsonl has fields of another version, which are not shown: temperature.",
    ]
    new = load_run(make(tmp_path / "new"))
    page = Page(render_page([run, new]))
    assert ["lr", "-", "0.1"] in page.rows


def test_runs_without_curves(tmp_path):
    run = make(tmp_path / "begun", [])
    (run / "metrics.jsonl").unlink()
    empty = make(tmp_path / "empty", [])
    (empty / "config.json").write_text("[1]")
    begun, nothing = load_runs([run, empty])
    assert begun.problems == ["There is no metrics.jsonl: there are no curves to show."]
    assert nothing.problems[0].startswith("config.json cannot be read (it holds no JSON object)")
    text = render_page([begun, nothing])
    assert not Page(text).images
    assert "there are no curves to show" in text


def health_line(step, **flags):
    """Three layers, whose gradients shrink with the steps; ``flags`` says what is the matter with some."""
    layers = {
        name: {"grad_norm": 0.0 if flags.get(name) == "no gradient" else size / step, "flag": flags.get(name, "ok")}
        for name, size in (("tokens", 4.0), ("block", 0.5), ("head", 1.0))
    }
    if flags.get("head") == "not finite":
        layers["head"]["grad_norm"] = None
    return json.dumps({"step": step, "layers": layers}) + "\n"


def of_health(run):
    return [problem for problem in run.problems if "health.jsonl" in problem]


def test_health_by_layer(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sound, sick, without = (make(tmp_path / name, []) for name in ("sound", "sick", "without"))
    (sound / "health.jsonl").write_text("".join(health_line(step) for step in (1, 5, 10)), encoding="utf-8")
    lines = [
        health_line(1),
        health_line(5, block="vanishing"),
        health_line(10, block="vanishing", head="not finite", tokens="no gradient"),
        '{"step": 20, "lay',
    ]
    (sick / "health.jsonl").write_text("".join(lines), encoding="utf-8")
    runs = load_runs([sound, sick, without])
    assert [len(run.health) for run in runs] == [3, 3, 0]
    assert of_health(runs[1]) == ["Line 4 of health.jsonl is cut short: it is left out."]
    told = (
        "all 3 layers ok in 3 records, steps 1 to 10",
        "block: vanishing in 2, first at step 5; tokens: no gradient in 1, first at step 10;"
        " head: not finite in 1, first at step 10 (of 3 records, steps 1 to 10)",
    )
    text = render_page(runs)
    assert text == render_page(runs)
    maps = [image for image in Page(text).images if image["alt"].startswith("Norm of the gradient")]
    assert len(maps) == 2
    for image, words, name in zip(maps, told, ("sound", "sick"), strict=True):
        assert image["alt"] == f"Norm of the gradient of each layer over the steps of {name}: {words}."
    svgs = [base64.b64decode(image["src"].partition(",")[2]) for image in maps]
    # A cross for each record of a layer that is not ok.
    assert [len(re.findall(rb"<use [^>]*#ff3b30", svg)) for svg in svgs] == [0, 4]
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["report", "sound", "sick", "without", "--terminal"]) == 0
    summary = capsys.readouterr().out
    assert f"sound: health by layer: {told[0]}" in summary
    assert f"sick: health by layer: {told[1]}" in summary
    assert "without: health" not in summary


def test_health_of_unusual_runs(tmp_path):
    run = make(tmp_path / "run", [])
    for lines in ([health_line(1)], [health_line(1, tokens="no gradient", block="no gradient", head="not finite")]):
        (run / "health.jsonl").write_text("".join(lines), encoding="utf-8")
        assert "Health by layer" in render_page([load_run(run)])
    # More layers than a sentence names.
    many = {f"layer{i}": {"grad_norm": 0.0, "flag": "vanishing"} for i in range(9)}
    (run / "health.jsonl").write_text(json.dumps({"step": 3, "layers": many}) + "\n", encoding="utf-8")
    words = "; layer4: vanishing in 1, first at step 3; and 4 more (of 1 record, steps 3 to 3)"
    assert words in render_page([load_run(run)])
    (run / "health.jsonl").write_text('{"step": 1, "layers": []}\n{"step": 2}\n', encoding="utf-8")
    assert of_health(load_run(run)) == [
        "Line 1 of health.jsonl cannot be read: it is left out.",
        "Line 2 of health.jsonl is cut short: it is left out.",
    ]
    assert "Health by layer" not in render_page([load_run(run)])


def test_refusals(tmp_path, capsys):
    (tmp_path / "other").mkdir()
    for path, words in ((tmp_path / "missing", "which is none"), (tmp_path / "other", "which has neither")):
        assert main(["report", str(path)]) == 2
        assert re.fullmatch(rf"fusestep: report: run: expected .*{words}\. .*\n", capsys.readouterr().err)
    run = make(tmp_path / "run")
    assert main(["report", str(run), "--output", str(tmp_path / "no" / "page.html")]) == 2
    assert "page.html" in capsys.readouterr().err
    with pytest.raises(ValueError, match="render_page: runs: expected at least one, got none"):
        render_page([])


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "one", [line(1), line(2)[:9]])
    make(tmp_path / "[bold]two", settings={"lr": 0.2})
    assert main(["report", "one", "[bold]two"]) == 0
    output = capsys.readouterr().out.splitlines()
    assert output == ["one: Line 2 of metrics.jsonl is cut short: it is left out.", "see report.html"]
    assert "<title>2 runs</title>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["report", "one", "[bold]two", "--terminal"]) == 0
    summary = capsys.readouterr().out
    for words in ("Results", "What differs", "[bold]two", "0.6667 at step 6", "cut short"):
        assert words in summary


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [500, 1280])
def test_in_a_browser(tmp_path, width):
    page = tmp_path / "page.html"
    # What the browser lays out: no wider than the window, and every picture drawn.
    probe = """<script>addEventListener("load", () => { document.title = JSON.stringify({
        wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
        drawn: [...document.images].map(image => image.naturalWidth > 0) }) })</script>"""
    one, other = make(tmp_path / "one"), make(tmp_path / ("long-name-" * 8))
    (one / "health.jsonl").write_text(health_line(1) + health_line(5, head="not finite"), encoding="utf-8")
    text = render_page(load_runs([one, other]))
    page.write_text(text + probe, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    done = subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900",
         "--virtual-time-budget=2000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1])
    assert found == {"wide": 0, "drawn": [True] * 6}
