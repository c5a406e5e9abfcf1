"""The results as tables in Markdown, several machines beside each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .documents import key, title
from .floor import NAME as FLOOR
from .rows import OURS, PEAK, Row, noise

# The title of a machine, and its rows.
Columns = list[tuple[str, list[Row]]]
Key = tuple[str, str, str]


def machines(found: list[tuple[str, str, list[dict[str, Any]]]]) -> str:
    """Where and when, with what: a line for each file."""
    body = []
    for name, folder, sources in found:
        for document in sources:
            where = document["machine"]
            versions = ", ".join(f"{lib} {version}" for lib, version in where["versions"].items() if version)
            noisy = sum(bool(noise(row)) for row in document["results"])
            records = document.get("contestants", {})
            beside = ", ".join(f"{peer} {record['version']}" for peer, record in records.items() if record["rows"])
            file = f"bench/results/{folder}"
            quiet = f"{noisy} of {len(document['results'])}"
            body.append(
                [name, document["what"], where["date"], f"{where['memory_gib']} GiB", versions, beside, quiet, file]
            )
    return markdown(["machine", "benchmark", "date", "memory", "versions", "beside", "noisy rows", "folder"], body)


def ratios(columns: Columns) -> str:
    """Our time, and our time over each of the others'; one table for each set of contestants that is compared with."""
    return _timed(columns, "over", _ratio)


def speeds(columns: Columns) -> str:
    """Our time, and how many times as fast as each of the others ours is."""
    return _timed(columns, "times as fast as", _speed)


def _timed(columns: Columns, relation: str, cell: Callable[[Row], str]) -> str:
    timed = [(name, {key(row): row for row in rows if row.get("ratios")}) for name, rows in columns]
    timed = [(name, rows) for name, rows in timed if rows]
    if not timed:
        return "Not measured yet.\n"
    keys = list(dict.fromkeys(key for _, rows in timed for key in rows))
    header, makers = ["milliseconds"], []
    for name, rows in timed:
        found = dict.fromkeys(peer for row in rows.values() for peer in row["ratios"] if peer != PEAK)
        # The floor first; our own other precisions, in few rows, last.
        against = sorted(found, key=lambda peer: (peer != FLOOR, peer.startswith(OURS)))
        header += [f"{name}: ours", *(f"{relation} {peer}" for peer in against)]
        makers.append((rows, against))
    body = []
    for wanted in keys:
        line = [title_of(wanted)]
        for rows, against in makers:
            row = rows.get(wanted)
            line.append("" if row is None else _ours(row))
            line += ["" if row is None or peer not in row["ratios"] else cell(row["ratios"][peer]) for peer in against]
        body.append(line)
    return markdown(header, body)


def _ours(row: Row) -> str:
    ours = row["contestants"][OURS]
    time = f"{ours['seconds']['median'] * 1e3:.3g}"
    if ours.get("gb_per_s") is not None:
        time += f" ({ours['gb_per_s']:.0f} GB/s)"
    if ours.get("gflop_per_s") is not None:
        time += f" ({ours['gflop_per_s']:.0f} GFLOP/s, {ours['share_of_peak']:.0%} of the peak)"
    return time + (" *" if noise(row) else "")


def _ratio(ratio: Row) -> str:
    text = f"{ratio['median']:.2f} ({ratio['q1']:.2f}-{ratio['q3']:.2f})"
    return _judged(text, ratio)


def _speed(ratio: Row) -> str:
    text = f"{1 / ratio['median']:.3g} ({1 / ratio['q3']:.3g}-{1 / ratio['q1']:.3g})"
    if "at_most" in ratio:
        text += f", bar {1 / ratio['at_most']:.3g}"
    return _judged(text, ratio)


def _judged(text: str, ratio: Row) -> str:
    return f"**{text}**" if ratio.get("met") is False else text


def bars(columns: Columns) -> str:
    """What was asked for beforehand, and what was reached."""
    judged: list[dict[tuple[str, float], str]] = []
    for _, rows in columns:
        found: dict[tuple[str, float], str] = {}
        for row in rows:
            for peer, ratio in row.get("ratios", {}).items():
                if "at_most" in ratio:
                    verdict = _verdict(ratio["met"]) + (", but noisy" if ratio["noisy"] else "")
                    found[f"{title(row)}, over {peer}", ratio["at_most"]] = f"{_plain(ratio)}: {verdict}"
            if "check" in row and row[OURS] is not None:
                peers = "".join(f"; {peer}: {_number(value)}" for peer, value in row["peers"].items())
                unit = f" {row['unit']}" if row["unit"] else ""
                bar = (row["check"] + (f", {row['unit']}" if row["unit"] else ""), row["at_most"])
                found[bar] = f"{_number(row[OURS])}{unit}{peers}: {_verdict(row['met'])}"
        judged.append(found)
    names = dict.fromkeys(bar for found in judged for bar in found)
    body = [[name, f"{most:.3g}", *(found.get((name, most), "") for found in judged)] for name, most in names]
    return markdown(["bar", "at most", *(name for name, _ in columns)], body)


def checks(columns: Columns) -> str:
    """Figures that are not times."""
    found = [(name, {key(row): row for row in rows if "check" in row}) for name, rows in columns]
    names = list(dict.fromkeys(key for _, rows in found for key in rows))
    body = []
    for wanted in names:
        line, most, unit = [], "", ""
        for _, rows in found:
            row = rows.get(wanted)
            if row is None:
                line.append("")
                continue
            most, unit = f"{row['at_most']:.3g}", row["unit"]
            peers = "".join(f"; {peer}: {_number(value)}" for peer, value in row["peers"].items())
            line.append(_judged(_number(row[OURS]) + peers, row))
        body.append([wanted[1] + (f", {unit}" if unit else ""), most, *line])
    return markdown(["check", "at most", *(name for name, _ in found)], body)


def reading(columns: Columns) -> str:
    """Nanoseconds of reading lists of arrays."""
    columns = [(name, rows) for name, rows in columns if rows]
    found = [{key(row): row for row in rows} for _, rows in columns]
    body = []
    for way in dict.fromkeys(name for rows in found for _, name, _ in rows):
        line = [way]
        for rows in found:
            mine = [row for wanted, row in rows.items() if wanted[1] == way]
            call = [f"{row['ns_a_call']['median']:.0f} a call" for row in mine if row["ns_an_array"] is None]
            each = [f"{row['ns_an_array']:.0f} of {row['arrays']:,}" for row in mine if row["ns_an_array"] is not None]
            line.append("; ".join([*call, *(["an array: " + ", ".join(each)] if each else [])]))
        body.append(line)
    return markdown(["nanoseconds", *(name for name, _ in columns)], body)


def markdown(header: list[str], body: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def title_of(wanted: Key) -> str:
    return ", ".join(part for part in wanted[1:] if part)


def _verdict(met: bool) -> str:
    return "yes" if met else "**no**"


def _plain(ratio: Row) -> str:
    return f"{ratio['median']:.2f} ({ratio['q1']:.2f}-{ratio['q3']:.2f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
