"""The command line of `fusestep bench`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

SCHEMA = 1
WHAT = ("optim", "clip", "overhead", "attention", "dropout", "loss", "training", "sharded")


def main(argv: Sequence[str]) -> int:
    """Measure what argv asks for. Returns the exit status: 0, or 2 if something is missing."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.json not in (None, "-") and not Path(args.json).parent.is_dir():
        # Now, not after minutes of measuring.
        parser.error(f"--json: expected a file in a directory that exists, got {args.json}")
    try:
        import torch
    except ImportError:
        print("fusestep bench: torch is not installed, and there is nothing to measure against. "
              "Try: pip install 'fusestep[bench]'", file=sys.stderr)  # fmt: skip
        return 2

    import fusestep
    from fusestep import _machine

    from . import attention, clip, dropout, loss, optim, overhead, report, sharded, training
    from .attention_cases import QUICK_SHAPES, SHAPES
    from .cases import flat_case, gpt2_case, small_case
    from .timing import FULL, MANY, QUICK

    def say(what: str) -> None:
        print(f"fusestep bench: {what}", file=sys.stderr, flush=True)

    # Both sides alike: torch's contestants use torch's number, ours follow it unless told.
    torch.set_num_threads(args.threads)
    fusestep.set_num_threads(args.threads)

    effort = QUICK if args.quick else FULL
    flat, gpt2, small = flat_case(args.quick), gpt2_case(args.quick), small_case()
    rows = []
    if args.what in ("optim", "all"):
        rows += optim.run([flat, gpt2, small], effort, say)
    if args.what in ("clip", "all"):
        rows += clip.run([gpt2, small], 10**7 if args.quick else 10**8, effort, say)
    if args.what in ("overhead", "all"):
        rows += overhead.run([148, 1000], effort, say)
    if args.what in ("attention", "all"):
        rows += attention.run(QUICK_SHAPES if args.quick else SHAPES, args.only, QUICK if args.quick else MANY, say)
    if args.what in ("dropout", "all"):
        rows += dropout.run(dropout.elements_case(args.quick), effort, say)
    if args.what in ("loss", "all"):
        rows += loss.run(loss.logits_shape(args.quick), args.threads, effort, say)
    if args.what in ("training", "all"):
        rows += training.run(args.quick, effort, say)
    if args.what in ("sharded", "all"):
        rows += sharded.run(gpt2, args.threads, effort, say)

    where = _machine.describe()
    document = {"schema": SCHEMA, "what": args.what, "quick": args.quick, "machine": where, "results": rows}
    text = json.dumps(document, indent=1, allow_nan=False)
    if args.json == "-":
        print(text)
        return 0
    print(report.render(where, rows, args.quick), end="")
    if args.json:
        Path(args.json).write_text(text + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fusestep bench",
        description="Measure our kernels against torch and against the memory floor, interleaved in one run.",
    )
    parser.add_argument(
        "what",
        nargs="?",
        choices=(*WHAT, "all"),
        default="all",
        help="optim: a step of every optimizer; clip: clipping and AdamW; overhead: calls and tensors; attention: with "
        "masks and dropout; dropout; loss: cross-entropy over a large vocabulary; training: a step of the GPT; "
        "sharded: clipping and AdamW over two processes (default: all)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the results there; '-': to standard output, no table")
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
    parser.add_argument("--quick", action="store_true", help="smaller arrays and fewer rounds: less than a minute")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number
