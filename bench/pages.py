"""`fusestep bench results`: the tables and pictures of the documentation, made from bench/results/.

A folder there is a machine (and a number of threads): a column of each table. Its all.json is read first; a file of a
single benchmark, measured on its own, replaces that benchmark's rows. In the pages a table stands between two comments:

    <!-- made by fusestep bench results: optim -->
    <!-- end -->

Everything outside of such pairs is written by hand, and stays.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusestep._refusal import refuse
from fusestep.cli.errors import UserError

from . import documents, page_tables
from .rows import Row

OPERATION = "results"
PAGES = ("bench/README.md", "docs/performance.md")
RESULTS = "bench/results"
PICTURES = "docs/performance"
PICTURE_DPI = 85
_BLOCK = re.compile(r"(<!-- made by fusestep bench results: ([\w -]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_DIGEST = "Fusestep-Results"


@dataclass(frozen=True)
class Machine:
    """A folder of results. sources: the documents that the rows are from."""

    folder: str
    rows: list[Row]
    sources: list[dict[str, Any]]

    @property
    def title(self) -> str:
        where = self.sources[0]["machine"]
        return f"{where['cpu']}, {where['simd']}, {where['threads']} thread{'' if where['threads'] == 1 else 's'}"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="fusestep bench results",
        description="Make the tables and pictures of bench/README.md and docs/performance.md from bench/results/.",
    )
    parser.add_argument("--root", type=Path, default=Path(), help="of a checkout (default: the working directory)")
    args = parser.parse_args(argv)
    machines = read(args.root)
    texts = {name: made(args.root / name, machines) for name in PAGES}  # all, before the first is written
    for name, text in texts.items():
        (args.root / name).write_text(text, encoding="utf-8")
    draw(args.root, machines)
    return 0


def read(root: Path) -> list[Machine]:
    folder = root / RESULTS
    if not folder.is_dir():
        refuse(OPERATION, "--root", f"a checkout, with {RESULTS}/", f"none in {root.resolve()}", error=UserError)
    machines = []
    for place in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("earlier")):
        files = sorted(place.glob("*.json"), key=lambda path: (path.name != "all.json", path.name))
        if files:
            machines.append(_machine(place.name, [documents.load(OPERATION, path) for path in files]))
    return machines


def _machine(folder: str, sources: list[dict[str, Any]]) -> Machine:
    rows: list[Row] = []
    for document in sources:
        where = f"{RESULTS}/{folder}"
        if document["quick"]:
            refuse(OPERATION, where, "full runs", "a quick run", "Its arrays are smaller: it is no result.", UserError)
        if differences := documents.machine_differences(sources[0], document):
            expected = "the results of one machine and number of threads"
            refuse(OPERATION, where, expected, "; ".join(differences), "Give each a folder.", UserError)
        replaced = {row["bench"] for row in document["results"]}
        rows = [row for row in rows if row["bench"] not in replaced] + document["results"]
    return Machine(folder, rows, sources)


def made(page: Path, machines: list[Machine]) -> str:
    """The text of a page with every table as the results say."""
    text = page.read_text(encoding="utf-8")

    def table(match: re.Match[str]) -> str:
        if match[2] not in BLOCKS:
            refuse(OPERATION, page.name, f"one of {', '.join(BLOCKS)}", match[2], error=UserError)
        return f"{match[1]}{BLOCKS[match[2]](machines)}{match[3]}"

    return _BLOCK.sub(table, text)


def pictures(machines: list[Machine]) -> dict[str, tuple[Machine, list[Row]]]:
    """The names of the files, and what each shows."""
    from . import plots

    return {
        f"{machine.folder}-{name}.png": (machine, rows)
        for machine in machines
        for name, rows in plots.grouped(machine.rows)
        if len(rows) > 1
    }


def draw(root: Path, machines: list[Machine]) -> None:
    """Draws the pictures whose results have changed, and removes those that have none any more."""
    from . import plots

    folder, wanted = root / PICTURES, pictures(machines)
    folder.mkdir(exist_ok=True)
    for stray in folder.glob("*.png"):
        if stray.name not in wanted:
            stray.unlink()
    for name, (machine, rows) in wanted.items():
        path = folder / name
        if not path.exists() or drawn_from(path) != digest(rows):
            figure = plots.figure(rows, machine.title)
            figure.savefig(path, dpi=PICTURE_DPI, metadata={_DIGEST: digest(rows)})


def digest(rows: list[Row]) -> str:
    """What a picture was drawn from is written into it: pixels differ between versions of matplotlib."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def drawn_from(path: Path) -> str | None:
    from PIL import Image

    with Image.open(path) as image:
        found: str | None = image.info.get(_DIGEST)
    return found


def _pictures_block(machines: list[Machine]) -> str:
    lines = []
    for name, (machine, rows) in pictures(machines).items():
        what = rows[0]["bench"]
        operations = list(dict.fromkeys(row["operation"] for row in rows))
        if what == "attention" and len(operations) == 1:
            what = f"{what}, {operations[0]}"
        lines += [f"**{what}: {machine.title}**", "", f"![{what} on {machine.title}](performance/{name})", ""]
    return "\n".join(lines) + "\n"


def _of(benches: tuple[str, ...], maker: Callable[..., str], **options: Any) -> Callable[[list[Machine]], str]:
    def block(machines: list[Machine]) -> str:
        columns = [
            (machine.title, [row for row in machine.rows if row["bench"] in benches and "binding" not in row])
            for machine in machines
        ]
        return maker([(title, rows) for title, rows in columns if rows], **options)

    return block


BLOCKS: dict[str, Callable[[list[Machine]], str]] = {
    "machines": lambda machines: page_tables.machines([(m.title, m.folder, m.sources) for m in machines]),
    "optim": _of(("optim", "clip"), page_tables.ratios),
    "bars": _of(("optim", "clip", "dropout", "loss", "training", "sharded"), page_tables.bars),
    "sharded": _of(("sharded",), page_tables.ratios),
    "attention": _of(("attention",), page_tables.speeds),
    "attention checks": _of(("attention",), page_tables.checks),
    "dropout": _of(("dropout",), page_tables.speeds),
    "softmax": _of(("softmax",), page_tables.speeds),
    "loss": _of(("loss",), page_tables.speeds),
    "training": _of(("training",), page_tables.ratios),
    "overhead": lambda machines: page_tables.reading(
        [(m.title, [row for row in m.rows if "ns_a_call" in row]) for m in machines]
    ),
    "pictures": _pictures_block,
}
