"""The command line of `fusestep bench`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fusestep.cli.errors import UserError

if TYPE_CHECKING:
    from .rows import Row
    from .session import Session

SCHEMA = 2  # 2: the contestants, why they were left out, and the spread of the floor's own repeats

BENCHMARKS = {
    "optim": "a step of every optimizer, and of AdamW in 16 and 8 bits",
    "clip": "clipping and AdamW",
    "overhead": "what a call and a tensor cost",
    "attention": "with masks and dropout",
    "dropout": "alone, and with a residual",
    "softmax": "masked, with dropout",
    "loss": "cross-entropy over a large vocabulary",
    "training": "a whole step of the GPT",
    "sharded": "clipping and AdamW over two processes",
}
WHAT = tuple(BENCHMARKS)


@dataclass(frozen=True)
class Benchmark:
    """measurements: how many times `run` says what comes next."""

    measurements: int
    run: Callable[[Session], list[Row]]


def main(argv: Sequence[str]) -> int:
    """Do what argv asks for. Returns the exit status: 0, or 2 after the user's mistake."""
    try:
        if argv[:1] == ["compare"]:
            from . import compare

            return compare.main(argv[1:])
        if argv[:1] == ["results"]:
            from . import pages

            return pages.main(argv[1:])
        return _measure(argv)
    except UserError as error:
        print(f"fusestep bench: {error}", file=sys.stderr)
        return 2


def _measure(argv: Sequence[str]) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    for name in ("json", "plot"):
        path = getattr(args, name)
        if path not in (None, "-") and not Path(path).parent.is_dir():
            # Now, not after minutes of measuring.
            parser.error(f"--{name}: expected a file in a directory that exists, got {path}")
    needed = ["torch", "tqdm", *(["matplotlib"] if args.plot else [])]
    for module in needed:
        if importlib.util.find_spec(module) is None:
            raise UserError(f"{module} is not installed. Try: pip install 'fusestep[bench]'")

    from . import report

    document = measure(args)
    text = json.dumps(document, indent=1, allow_nan=False)
    if args.plot:
        from . import plots

        plots.save(document, Path(args.plot))
    if args.json == "-":
        print(text)
        if warning := report.noise_warning(document["results"]):
            print(warning, file=sys.stderr)
        return 0
    print(report.render(document), end="")
    if args.json:
        Path(args.json).write_text(text + "\n", encoding="utf-8")
    return 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The document that --json writes."""
    import fusestep
    import torch
    from fusestep import _machine

    from .peers import Peers
    from .progress import Progress
    from .session import Session
    from .timing import FULL, QUICK

    # Both sides alike: torch's contestants use torch's number, ours follow it unless told.
    torch.set_num_threads(args.threads)
    fusestep.set_num_threads(args.threads)

    peers = Peers(args.quick)
    unheard = Session(QUICK if args.quick else FULL, args.threads, lambda what: None, peers)
    planned = _planned(args, unheard)
    rows = []
    with Progress(sum(benchmark.measurements for benchmark in planned)) as progress:
        session = Session(unheard.effort, args.threads, progress, peers)
        for benchmark in planned:
            rows += benchmark.run(session)
    return {
        "schema": SCHEMA,
        "what": args.what,
        "only": args.only,
        "quick": args.quick,
        "machine": _machine.describe(),
        "contestants": peers.describe(),
        "results": rows,
    }


def _planned(args: argparse.Namespace, session: Session) -> list[Benchmark]:
    from . import attention, clip, dropout, loss, optim, overhead, sharded, softmax, training
    from .attention_cases import QUICK_SHAPES, SHAPES
    from .cases import flat_case, gpt2_case, small_case
    from .timing import MANY

    quick = args.quick
    flat, gpt2, small = flat_case(quick), gpt2_case(quick), small_case()
    many = session.effort if quick else MANY
    shapes = QUICK_SHAPES if quick else SHAPES
    scores = softmax.QUICK_SHAPES if quick else softmax.SHAPES
    attentions = len(attention.measurements(shapes, args.only, session))
    benchmarks = {
        "optim": Benchmark(3 * len(optim.TITLES), lambda s: optim.run([flat, gpt2, small], s)),
        "clip": Benchmark(3, lambda s: clip.run([gpt2, small], 10**7 if quick else 10**8, s)),
        "overhead": Benchmark(4, lambda s: overhead.run([148, 1000], s)),
        "attention": Benchmark(attentions, lambda s: attention.run(shapes, args.only, s.with_effort(many))),
        "dropout": Benchmark(5, lambda s: dropout.run(dropout.elements_case(quick), s)),
        "softmax": Benchmark(2 * len(softmax.problems(scores)), lambda s: softmax.run(scores, s.with_effort(many))),
        "loss": Benchmark(5, lambda s: loss.run(loss.logits_shape(quick), s)),
        "training": Benchmark(1, lambda s: training.run(quick, s)),
        "sharded": Benchmark(1, lambda s: sharded.run(gpt2, s)),
    }
    return list(benchmarks.values()) if args.what == "all" else [benchmarks[args.what]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fusestep bench",
        description="Measure our kernels against torch, other libraries where they are installed, and the memory's "
        "floor, interleaved in one run.",
        epilog="fusestep bench compare A.json B.json: two results, row by row. "
        "fusestep bench results: the pages of a checkout, made from its bench/results.",
    )
    parser.add_argument(
        "what",
        nargs="?",
        choices=(*WHAT, "all"),
        default="all",
        metavar="what",
        help="; ".join(f"{name}: {text}" for name, text in BENCHMARKS.items()) + " (default: all)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the results there; '-': to standard output, no table")
    parser.add_argument(
        "--plot", metavar="FILE", help="draw ratios and bandwidths, as PNG, SVG or PDF; one file for each benchmark"
    )
    parser.add_argument(
        "--threads",
        type=_positive,
        default=2,
        metavar="N",
        help="of ours and of torch's (default: %(default)s, as the bars)",
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="of attention, only what has this in its title, such as 'forward, (8, 12, 256, 64) causal'",
    )
    parser.add_argument(
        "--quick", action="store_true", help="smaller arrays and fewer rounds: some two minutes for all"
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number
