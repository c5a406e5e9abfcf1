"""`fusestep bench compare` and `fusestep bench results`: two files, and the pages that are made from files."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
from bench_documents import document
from fusestep.bench import cases, command, pages, plots, report, rows, timing

ROOT = Path(__file__).parents[2]


def timed(operation, ours, theirs, floor=(1.0, 1.0, 1.0), load=0.0, bars=()):
    case = cases.Case("flat", "1M", [(10**6,)])
    seconds = {rows.OURS: list(ours), "floor": list(floor), "torch fused": list(theirs)}
    return rows.timing_row("optim", operation, case, 28, timing.Timings(seconds, load), bars)


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def compared(capsys, a, b):
    assert command.main(["compare", a, b]) == 0
    return capsys.readouterr().out


# --- noise ---
@pytest.mark.parametrize(
    ("floor", "load", "reason"),
    [
        ((1.0, 1.0, 1.0), 0.0, ""),
        ((1.0, 1.0, 1.09), 0.05, ""),  # quartiles 0.045 apart, the load at the limit
        ((1.0, 1.0, 1.3), 0.0, "the floor's own repeats spread by 15%"),
        ((1.0, 1.0, 1.0), 0.06, "others used 6% of the CPUs"),
    ],
)
def test_a_row_is_noisy_by_its_floors_own_spread_or_by_the_load(floor, load, reason):
    bar = rows.Bar("AdamW", "flat", "torch fused", 0.9)
    row = timed("AdamW", [1.0] * 3, [2.0] * 3, floor, load, [bar])
    assert rows.noise(row) == reason
    assert row["ratios"]["torch fused"]["noisy"] == bool(reason)
    text = report.render(document(row))
    assert ("WARNING: 1 of 1 rows are noisy" in text) == bool(reason)
    # As in files of schema 1.
    assert rows.noise({name: row[name] for name in ("other_load", "contestants")}) == reason


def test_a_yardstick_is_no_contestant_but_tells_of_noise():
    seconds = {rows.OURS: [1.0] * 3, "peer": [2.0] * 3, rows.YARDSTICK: [1.0, 1.0, 1.3]}
    row = rows.timing_row("training", "step", cases.Case("gpt", "GPT", [(1,)]), None, timing.Timings(seconds, None))
    assert row["contestants"].keys() == {rows.OURS, "peer"}
    assert row["ratios"].keys() == {"peer"}
    assert row["yardstick_spread"] == pytest.approx(0.15)
    assert rows.noise(row)


# --- compare ---
def test_rows_are_matched_and_changes_are_what_does_not_overlap(write, capsys):
    a = document(timed("AdamW", [1.0, 1.1, 1.2], [2.0] * 3), timed("Adam", [1.0, 1.1, 1.2], [2.0] * 3))
    b = document(timed("SGD", [1.0] * 3, [2.0] * 3), timed("AdamW", [1.5, 1.6, 1.7], [2.0] * 3))
    out = compared(capsys, write("a.json", a), write("b.json", b))
    times, ratios = out.split("our time over theirs")
    assert re.search(r"AdamW, 1M +1100 +1050-1150 +1600 +1550-1650 +1.455 +slower", times)
    assert re.search(r"AdamW, 1M / torch fused +0.55 +0.525-0.575 +0.8 +0.775-0.825 +1.455 +slower", ratios)
    assert "Only in A: Adam, 1M\n" in out
    assert "Only in B: SGD, 1M\n" in out
    same = compared(capsys, write("a.json", a), write("b.json", a))
    assert "overlap" in same
    assert not re.search("slower|faster|Only in", same)


def test_other_machines_are_side_by_side_without_times(write, capsys):
    row = timed("AdamW", [1.0] * 3, [2.0] * 3)
    a, b = document(row), document(row, cpu="Another CPU", threads=1)
    out = compared(capsys, write("a.json", a), write("b.json", b))
    assert "The machines differ (cpu: A CPU and Another CPU; threads: 2 and 1)" in out
    assert "our time, ms" not in out
    assert "AdamW, 1M / torch fused" in out


def test_other_versions_and_noise_are_said(write, capsys):
    a = document(timed("AdamW", [1.0] * 3, [2.0] * 3, load=0.5))
    b = document(timed("AdamW", [1.0] * 3, [2.0] * 3), versions={"fusestep": "0.1.0", "torch": "2.7"})
    out = compared(capsys, write("a.json", a), write("b.json", b))
    assert "The versions differ: torch: 2.6 and 2.7." in out
    assert "AdamW, 1M *" in out
    assert "*: the machine was noisy" in out


def test_checks_are_compared(write, capsys):
    a, b = (document(rows.check_row("clip", "extra memory", "MiB", value, 1.0, {})) for value in (0.5, None))
    assert re.search(r"extra memory +0.5 MiB +-", compared(capsys, write("a.json", a), write("b.json", b)))


@pytest.mark.parametrize(
    ("b", "message"),
    [
        ("not JSON", "expected a file that `fusestep bench --json` has written, got no JSON"),
        ([1], "got another kind of JSON"),
        ({**document(), "schema": 99}, "expected schema 1 or 2, got 99. It was written by another version"),
        (document(timed("AdamW", [1.0], [1.0]), quick=True), "expected a full run, as the first file, got a quick run"),
        (
            document(rows.check_row("clip", "memory", "MiB", 1.0, 1.0, {})),
            "expected some rows of the first file (of optim), got only others (of clip)",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(b, message, write, capsys):
    a = write("a.json", document(timed("AdamW", [1.0], [2.0])))
    assert command.main(["compare", a, write("b.json", b)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("fusestep bench: compare: ")
    assert message in error


def test_a_missing_file_is_refused(tmp_path, capsys):
    assert command.main(["compare", str(tmp_path / "none.json"), "x"]) == 2
    assert (
        "none.json: expected a file that `fusestep bench --json` has written, got No such file"
        in capsys.readouterr().err
    )


# --- pages ---
@pytest.mark.skipif(not (ROOT / pages.RESULTS).is_dir(), reason="a source distribution has no results")
def test_the_committed_pages_say_what_the_committed_results_say():
    """If this fails: `fusestep bench results` in the checkout, and commit what it makes."""
    machines = pages.read(ROOT)
    for name in pages.PAGES:
        assert pages.made(ROOT / name, machines) == (ROOT / name).read_text(encoding="utf-8"), name
    wanted = pages.pictures(machines)
    assert {path.name for path in (ROOT / pages.PICTURES).glob("*.png")} == wanted.keys()
    for name, (_, shown) in wanted.items():
        assert pages.drawn_from(ROOT / pages.PICTURES / name) == pages.digest(shown), name


@pytest.fixture
def checkout(tmp_path, write):
    """A checkout with the results of two machines and pages that are still empty."""
    bar = rows.Bar("AdamW", "flat", "torch fused", 0.4)
    first = document(timed("AdamW", [1.0] * 3, [2.0] * 3, bars=[bar]), timed("Adam", [1.0] * 3, [4.0] * 3))
    write("bench/results/one/all.json", first)
    write("bench/results/two/all.json", document(timed("AdamW", [3.0] * 3, [2.0] * 3, load=0.5), cpu="Another CPU"))
    text = "Before.\n<!-- made by fusestep bench results: optim -->\n<!-- end -->\nAfter.\n"
    for name in pages.PAGES:
        write(name, text)
    return tmp_path


def test_pages_are_made_with_a_column_for_each_machine(checkout):
    assert command.main(["results", "--root", str(checkout)]) == 0
    text = (checkout / "bench/README.md").read_text()
    assert text.startswith("Before.\n<!--")
    assert text.endswith("<!-- end -->\nAfter.\n")
    assert (
        "| A CPU, avx2, 2 threads: ours | over floor | over torch fused | Another CPU, avx2, 2 threads: ours |" in text
    )
    assert "**0.50 (0.50-0.50)**" in text  # a bar that was missed
    assert "3e+03 (0 GB/s) *" in text  # noisy
    line = next(line for line in text.splitlines() if line.startswith("| Adam, 1M"))
    assert line.endswith("0.25 (0.25-0.25) |  |  |  |")  # the other machine has not measured it
    pictures = sorted((checkout / pages.PICTURES).glob("*"))
    assert [path.name for path in pictures] == ["one-optim.png"]  # a single row makes no picture
    before = pictures[0].stat().st_mtime_ns
    assert command.main(["results", "--root", str(checkout)]) == 0
    assert (checkout / "bench/README.md").read_text() == text
    assert pictures[0].stat().st_mtime_ns == before  # drawn anew only where results have changed


def test_a_benchmarks_own_file_replaces_its_rows(checkout, write):
    write("bench/results/one/optim.json", document(timed("AdamW", [8.0] * 3, [2.0] * 3)))
    (machine,) = (machine for machine in pages.read(checkout) if machine.folder == "one")
    assert [row["contestants"][rows.OURS]["seconds"]["median"] for row in machine.rows] == [8.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (document(quick=True), "expected full runs, got a quick run"),
        (document(threads=1), "expected the results of one machine and number of threads, got threads: 2 and 1"),
    ],
)
def test_results_that_do_not_belong_there_are_refused_before_anything_is_written(
    content, message, checkout, write, capsys
):
    write("bench/results/one/optim.json", content)
    before = (checkout / "bench/README.md").read_text()
    assert command.main(["results", "--root", str(checkout)]) == 2
    assert message in capsys.readouterr().err
    assert (checkout / "bench/README.md").read_text() == before


def test_an_unknown_table_and_a_folder_without_results_are_refused(checkout, tmp_path, capsys):
    page = checkout / "docs/performance.md"
    page.write_text(page.read_text().replace(": optim", ": option"))
    assert command.main(["results", "--root", str(checkout)]) == 2
    assert "performance.md: expected one of machines, optim" in capsys.readouterr().err
    shutil.rmtree(checkout / "bench")
    assert command.main(["results", "--root", str(checkout)]) == 2
    assert "--root: expected a checkout, with bench/results/, got none in" in capsys.readouterr().err


# --- pictures ---
def test_a_picture_for_each_benchmark(tmp_path):
    first = timed("AdamW", [1.0] * 3, [2.0] * 3)
    second = {**copy.deepcopy(first), "bench": "clip"}
    paths = plots.save(document(first, second), tmp_path / "all.png")
    assert [path.name for path in paths] == ["all-optim.png", "all-clip.png"]
    assert plots.save(document(first), tmp_path / "one.svg") == [tmp_path / "one.svg"]
    for path in (*paths, tmp_path / "one.svg"):
        assert path.stat().st_size > 1000


def test_a_picture_shows_medians_quartiles_and_the_floor():
    row = timed("AdamW", [1.0, 2.0, 3.0], [4.0] * 3)
    left, right = plots.figure([row], "heading").axes
    (bar,) = left.patches
    assert bar.get_width() == row["ratios"]["torch fused"]["median"] == 0.5
    floor = next(line for line in right.lines if line.get_label() == "floor, measured")
    assert set(floor.get_xdata()) == {28e6 / 1e9}
    ours = next(line for line in right.lines if line.get_label() == rows.OURS)
    assert ours.get_xdata() == [28e6 / 2.0 / 1e9]


def test_many_rows_are_split_by_operation():
    many = [timed(operation, [1.0], [2.0]) for operation in ("a b", "c") for _ in range(plots.MOST_ROWS)]
    assert [(name, len(rows)) for name, rows in plots.grouped(many)] == [("optim-a-b", 60), ("optim-c", 60)]
