"""`fusestep bench attention`: masks and dropout, forward and backward, against torch and the peak of the arithmetic."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import fusestep
import fusestep._core as _core
import fusestep.nn.functional as F
import torch

from .attention_cases import (
    BF16_SPEED,
    BOTH,
    FORWARD,
    MASKS,
    MEMORY,
    PEAK,
    PHILOX_SHARE,
    S256,
    S1024,
    TINY,
    TORCH,
    Problem,
    Shape,
    Tensors,
    bars,
    make_tensors,
)
from .memory import peak_growth
from .rows import OURS, Bar, Row, check_row, work_row
from .session import Session
from .timing import Contestant, Effort, Timings, measure

OUR_FLOAT32 = "fusestep float32"
MIB = 2**20
_PEAK_PIECES = 256  # an eighth of a millisecond or so: the timing repeats them to fill a slot


def run(shapes: Sequence[Shape], only: str, session: Session) -> list[Row]:
    rows = []
    for title, measure_rows in measurements(shapes, only, session):
        session.say(title)
        rows += measure_rows()
    return rows


def measurements(shapes: Sequence[Shape], only: str, session: Session) -> list[tuple[str, Callable[[], list[Row]]]]:
    """A row for each shape, mask, p and direction whose title contains `only`; then the checks that need several."""
    effort, wanted = session.effort, list(bars(session.threads))
    planned: list[tuple[str, Callable[[], list[Row]]]] = []
    for problem in problems(shapes):
        if only in f"{problem.direction}, {problem.title}":
            measure_rows = partial(problem_rows, problem, wanted, effort, session.threads)
            planned.append((f"attention {problem.direction}, {problem.title}", measure_rows))
    if only in "Philox":
        drawn = [shape for shape in shapes if shape in (S256, S1024)]
        planned += [(f"Philox's share, {shape}", partial(philox_rows, shape, effort)) for shape in drawn]
    low = Problem(S256, "none", 0.0, FORWARD, torch.bfloat16)
    if S256 in shapes and only in low.title:
        planned.append((f"attention forward, {low.title}", partial(bfloat16_rows, low, effort)))
    return planned


def problems(shapes: Iterable[Shape]) -> list[Problem]:
    return [
        Problem(shape, mask, p, direction)
        for shape in shapes
        for p in (0.0, 0.1)
        for mask in MASKS
        for direction in (FORWARD, BOTH)
    ]


def steps(problem: Problem, tensors: Tensors) -> dict[str, Callable[[], object]]:
    """The public functions, ours and torch's, on the same tensors."""

    def step(function: Callable[..., torch.Tensor], options: dict[str, object]) -> Callable[[], object]:
        def forward() -> torch.Tensor:
            return function(*tensors.inputs, **options)

        def both() -> object:
            return torch.autograd.grad(forward(), tensors.inputs, tensors.grad)

        return forward if problem.direction == FORWARD else both

    return {
        OURS: step(F.attention, tensors.our_options),
        TORCH: step(torch.nn.functional.scaled_dot_product_attention, tensors.torch_options),
    }


def problem_rows(problem: Problem, wanted: Iterable[Bar], effort: Effort, threads: int) -> list[Row]:
    """Times and memory; a bar for the memory where there is dropout."""
    slow = {TORCH: effort.slow_rounds} if problem.p > 0 else {}
    contestants = [
        Contestant(name, step, slow.get(name)) for name, step in steps(problem, make_tensors(problem)).items()
    ]
    timings = against_peak([*contestants, Contestant(PEAK, lambda: _core.fma_peak(_PEAK_PIECES))], problem, effort)
    growth = {name: memory_growth(problem, name, threads) for name in (OURS, TORCH)}
    rows = [work_row("attention", problem.direction, problem.title, problem.flops, timings, growth, wanted)]
    if problem.p > 0 and problem.mask == "none" and problem.shape != TINY:
        mib = {name: None if size is None else size / MIB for name, size in growth.items()}
        what = f"peak memory growth of {problem.direction}, {problem.title}"
        most = MEMORY * problem.result_bytes / MIB
        rows.append(check_row("attention", what, "MiB", mib[OURS], most, {TORCH: mib[TORCH]}))
    return rows


def against_peak(contestants: Sequence[Contestant], problem: Problem, effort: Effort) -> Timings:
    """The timings, with the time that the problem's operations would take at the peak in the place of PEAK's own."""
    timings = measure(contestants, effort)
    scale = problem.flops / _core.fma_peak(_PEAK_PIECES)
    peak = [seconds * scale for seconds in timings.seconds[PEAK]]
    return replace(timings, seconds={**timings.seconds, PEAK: peak})


def philox_rows(shape: Shape, effort: Effort) -> list[Row]:
    """The part of the forward pass that dropout adds."""
    plain, dropping = (Problem(shape, "none", p, FORWARD) for p in (0.0, 0.1))
    timings = measure(
        [Contestant(problem.title, steps(problem, make_tensors(problem))[OURS]) for problem in (plain, dropping)],
        effort,
    )
    share = 1 - timings.ratio(plain.title, to=dropping.title).median
    return [check_row("attention", f"Philox's share of forward, {shape}", "", share, PHILOX_SHARE, {})]


def bfloat16_rows(problem: Problem, effort: Effort) -> list[Row]:
    """16-bit storage against our own float32."""
    single = replace(problem, dtype=torch.float32)
    low = steps(problem, make_tensors(problem))
    contestants = [
        Contestant(OURS, low[OURS]),
        Contestant(OUR_FLOAT32, steps(single, make_tensors(single))[OURS]),
        Contestant(TORCH, low[TORCH], effort.slow_rounds),
        Contestant(PEAK, lambda: _core.fma_peak(_PEAK_PIECES)),
    ]
    bar = Bar(FORWARD, problem.title, OUR_FLOAT32, 1 / BF16_SPEED)
    timings = against_peak(contestants, problem, effort)
    return [work_row("attention", FORWARD, problem.title, problem.flops, timings, {}, [bar])]


def memory_growth(problem: Problem, name: str, threads: int) -> int | None:
    """Bytes, in a process of its own, where nothing that an earlier row has left can be used again."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with context.Pool(1) as pool:
        return pool.apply(_memory_growth, (problem, name, threads))


def _memory_growth(problem: Problem, name: str, threads: int) -> int | None:
    torch.set_num_threads(threads)
    fusestep.set_num_threads(threads)
    small = replace(problem, shape=TINY)  # what is allocated once and for all is not the problem's
    steps(small, make_tensors(small))[name]()
    return peak_growth(steps(problem, make_tensors(problem))[name])
