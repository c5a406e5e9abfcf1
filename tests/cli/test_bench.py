"""`fusestep bench`: that ratios and verdicts are computed right, and that every benchmark runs and reports."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from bench_documents import document
from exactness import assert_as_exact
from fusestep.bench import (
    attention,
    attention_cases,
    cases,
    clip,
    command,
    dropout,
    loss,
    memory,
    nanobind_module,
    optim,
    overhead,
    peers,
    report,
    rows,
    softmax,
    timing,
    training,
)
from fusestep.bench.session import Session
from fusestep.bench.timing import Contestant, Effort

TINY = Effort(rounds=3, seconds=0.2, slow_rounds=2)


class Clock:
    """A clock that only contestants move."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def contestant(self, name, seconds, **options):
        """Takes the given seconds a step, one after another, the last one for ever."""
        remaining = list(seconds)

        def step():
            self.now += remaining.pop(0) if len(remaining) > 1 else remaining[0]

        return Contestant(name, step, **options)


def silent(_what):
    pass


@pytest.fixture
def session():
    return Session(TINY, 2, silent, peers.Peers(peers=()))


# --- timing ---
def test_a_step_is_timed_and_paired_with_its_neighbours():
    clock = Clock()
    # Two steps of warm-up, then one a round: each is longer than a slot.
    ours = clock.contestant("ours", [9, 9, 1.0, 2.0, 4.0])
    theirs = clock.contestant("theirs", [9, 9, 2.0, 8.0, 8.0])
    timings = timing.measure([ours, theirs], Effort(rounds=3, seconds=1e9, slow_rounds=3), clock)
    assert timings.seconds == {"ours": [1.0, 2.0, 4.0], "theirs": [2.0, 8.0, 8.0]}
    ratio = timings.ratio("ours", to="theirs")  # 0.5, 0.25, 0.5 in the rounds: not the ratio of the medians
    assert (ratio.median, ratio.best) == (0.5, 0.25)
    assert timings.spread("theirs") == timing.Spread(median=8.0, q1=5.0, q3=8.0, best=2.0)


def test_short_steps_are_repeated_to_fill_a_slot():
    clock = Clock()
    timings = timing.measure([clock.contestant("short", [0.001])], Effort(3, 1e9, 3), clock)
    assert timings.seconds["short"] == pytest.approx([0.001] * 3)
    # Two steps of warm-up; then in each round one more, and a slot of 20.
    assert clock.now == pytest.approx(0.001 * (2 + 3 * (1 + math.ceil(timing.SLOT_SECONDS / 0.001))))


def test_slow_contestants_leave_after_their_rounds_and_the_budget_ends_the_rest():
    clock = Clock()
    slow = clock.contestant("slow", [1.0], max_rounds=1)
    fast = clock.contestant("fast", [1.0])
    timings = timing.measure([slow, fast], Effort(rounds=100, seconds=5.0, slow_rounds=1), clock)
    assert len(timings.seconds["slow"]) == 1
    assert timing.MIN_ROUNDS <= len(timings.seconds["fast"]) < 10
    assert timings.ratio("fast", to="slow").median == 1.0


# --- rows and verdicts ---
@pytest.mark.parametrize(
    ("ours", "at_most", "met", "noisy"),
    [([1.0, 1.0, 1.0], 0.5, True, False), ([1.0, 1.0, 1.0], 0.4, False, False), ([0.6, 1.0, 1.4], 0.5, True, True)],
)
def test_a_bar_is_judged_by_the_median_and_noisy_where_the_quartiles_straddle_it(ours, at_most, met, noisy):
    case = cases.Case("flat", "tiny", [(10,)])
    timings = timing.Timings({rows.OURS: ours, "peer": [2.0, 2.0, 2.0]}, other_load=0.0)
    row = rows.timing_row("optim", "AdamW", case, 28, timings, [rows.Bar("AdamW", "flat", "peer", at_most)])
    ratio = row["ratios"]["peer"]
    assert (ratio["median"], ratio["met"], ratio["noisy"]) == (0.5, met, noisy)
    assert row["contestants"]["peer"]["gb_per_s"] == 28 * 10 / 2.0 / 1e9


def test_a_busy_machine_makes_every_verdict_noisy():
    timings = timing.Timings({rows.OURS: [1.0] * 3, "peer": [2.0] * 3}, other_load=0.5)
    bar = rows.Bar("AdamW", "flat", "peer", 0.9)
    row = rows.timing_row("optim", "AdamW", cases.Case("flat", "tiny", [(1,)]), None, timings, [bar])
    assert row["ratios"]["peer"]["noisy"]


def test_gpt2_is_gpt2():
    case = cases.gpt2_case(quick=False)
    assert (len(case.shapes), case.elements) == (148, 124_439_808)


# --- the benchmarks themselves, on next to nothing ---
@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(cases, "flat_case", lambda quick: cases.Case("flat", "tiny flat", [(5000,)]))
    monkeypatch.setattr(cases, "gpt2_case", lambda quick: cases.Case("gpt2", "tiny list", [(50, 7), (3,)]))
    monkeypatch.setattr(cases, "small_case", lambda: cases.Case("small", "tiny small", [(10,)] * 5))
    monkeypatch.setattr(attention_cases, "QUICK_SHAPES", (attention_cases.TINY,))
    monkeypatch.setattr(dropout, "elements_case", lambda quick: cases.Case("elements", "tiny", [(5000,)]))
    monkeypatch.setattr(softmax, "QUICK_SHAPES", ((1, 2, 8, 8),))
    monkeypatch.setattr(loss, "logits_shape", lambda quick: (5, 300))
    monkeypatch.setattr(timing, "QUICK", TINY)


@pytest.fixture(autouse=True)
def same_threads(threads):
    """The benchmarks set numbers of threads, torch's too."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("what", command.WHAT)
def test_the_command_reports_for_people_and_as_json(what, tiny, tmp_path, capsys):
    target = tmp_path / "results.json"
    only = ["--only", "(2, 4, 64, 32) none, p = 0"] if what == "attention" else []
    assert command.main([what, "--quick", *only, "--json", str(target)]) == 0
    table, progress = capsys.readouterr()
    document = json.loads(target.read_text())
    assert document["schema"] == command.SCHEMA
    assert document["quick"] is True
    # Every measurement was announced, and no other.
    done, total = re.search(r"done: 100%.* (\d+)/(\d+) ", progress.splitlines()[-1]).groups()
    assert done == total
    assert document["contestants"].keys() == {peer.name for peer in peers.PEERS}
    assert document["machine"]["threads"] == 2
    assert document["results"]
    assert {row["bench"] for row in document["results"]} == {what}
    for row in document["results"]:
        for ratio in row.get("ratios", {}).values():
            assert 0 < ratio["q1"] <= ratio["median"] <= ratio["q3"]
    titles = {
        "overhead": (),
        "attention": ("(2, 4, 64, 32)", "of peak"),
        "training": ("default GPT",),
        "loss": ("300 classes",),
        "softmax": ("(1, 2, 8, 8) causal, p = 0.1", "floor"),
    }
    assert all(title in table for title in titles.get(what, ("tiny", "fusestep")))
    assert ("Bars" in table) == (what not in ("overhead", "softmax"))


def test_json_alone_on_standard_output(tiny, capsys):
    assert command.main(["optim", "--quick", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["what"] == "optim"


def test_results_that_could_not_be_written_are_not_measured(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["optim", "--json", str(tmp_path / "missing" / "results.json")])
    assert "--json: expected a file in a directory that exists" in capsys.readouterr().err


def test_every_optimizer_has_a_row_and_every_bar_is_met_by_a_row(session):
    case = cases.Case("flat", "tiny", [(5000,)])
    measured = optim.run([case], session)
    assert tuple(row["operation"] for row in measured) == optim.TITLES
    for bar in optim.BARS:
        assert bar.operation in optim.TITLES
        if bar.case == "flat":
            row = next(row for row in measured if row["operation"] == bar.operation)
            assert row["ratios"][bar.against]["at_most"] == bar.at_most


@pytest.mark.parametrize("mask", attention_cases.MASKS)
def test_both_attentions_compute_the_same(mask):
    problem = attention_cases.Problem(attention_cases.TINY, mask, 0.0, attention_cases.BOTH)
    tensors = attention_cases.make_tensors(problem)
    single, double = attention.steps(problem, tensors), attention.steps(problem, widened(tensors))
    for ours, theirs, exact in zip(
        *(step() for step in (single[rows.OURS], single[attention_cases.TORCH], double[attention_cases.TORCH])),
        strict=True,
    ):
        assert_as_exact(ours, theirs, exact)


def widened(tensors):
    def wide(x):
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            return x
        return x.detach().double().requires_grad_(x.requires_grad)

    def every(options):
        return {name: wide(value) for name, value in options.items()}

    inputs = tuple(wide(x) for x in tensors.inputs)
    return attention_cases.Tensors(inputs, every(tensors.torch_options), every(tensors.our_options), wide(tensors.grad))


@pytest.mark.parametrize("threads", [1, 2])
def test_every_bar_of_attention_belongs_to_a_row(threads):
    measured = {(p.direction, p.title) for p in attention.problems(attention_cases.SHAPES)}
    bars = list(attention_cases.bars(threads))
    assert {(bar.operation, bar.case) for bar in bars} <= measured
    assert len({(bar.operation, bar.case, bar.against) for bar in bars}) == len(bars)


def test_the_peak_is_the_time_of_the_problems_operations_at_the_peaks_rate():
    problem = attention_cases.Problem(attention_cases.TINY, "causal", 0.0, attention_cases.FORWARD)
    assert problem.flops == 2 * 2 * 2 * 4 * 64 * 64 * 32 / 2
    (row,) = attention.problem_rows(problem, (), TINY, threads=1)
    for contestant in row["contestants"].values():
        assert contestant["gflop_per_s"] == pytest.approx(problem.flops / contestant["seconds"]["median"] / 1e9)
    assert row["contestants"][rows.PEAK]["share_of_peak"] == 1.0
    assert row["contestants"][rows.OURS]["share_of_peak"] < 1.0
    assert row["contestants"][rows.OURS]["peak_growth"] is None or row["contestants"][rows.OURS]["peak_growth"] >= 0


def test_a_training_step_trains_on_both_kernels():
    settings = training.Settings(batch_size=1, context=8)
    for kernels in training.KERNELS:
        model, step = training.step_of(kernels, settings)
        before = [p.detach().clone() for p in model.parameters()]
        step()
        assert model.config.kernels == kernels
        assert not any(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_contestants_work_on_the_same_arrays(session):
    storage = cases.Storage(cases.Case("flat", "tiny", [(100,)]), num_states=2)
    before = storage.params[0].detach().clone()
    for contestant in clip.contestants(storage, session):
        contestant.step()
        assert torch.equal(storage.params[0].detach(), before) == (contestant.name == "floor"), contestant.name
        before = storage.params[0].detach().clone()


def test_memory_growth_is_seen():
    size = 64 * 2**20
    growth = memory.peak_growth(lambda: bytearray(size).find(1))
    if growth is None:
        pytest.skip("this system does not tell the peak of the resident memory")
    assert 0.9 * size < growth < 1.2 * size


def test_accuracy_of_the_norm_is_measured_against_float64():
    error, bits = clip.norm_rows(100_000)
    assert error["met"]
    assert bits[rows.OURS] == 1


def test_nanobind_reads_what_fusestep_reads():
    module = nanobind_module.load()
    tensors = [torch.zeros(3) for _ in range(7)]
    assert module.read_ndarrays(tensors) == module.read_exchange_api(tensors) == 7
    assert {way.binding for way in overhead.ways(silent)} == {overhead.PYBIND11, overhead.NANOBIND}


def test_a_figure_that_cannot_be_measured_is_no_failure():
    row = rows.check_row("clip", "memory", "MiB", None, 1.0, {"torch": None})
    assert row["met"] is None
    assert "not measurable here" in report.render(document(row))
