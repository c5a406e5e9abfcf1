"""The results as a table for people."""

from __future__ import annotations

from collections.abc import Iterable

from .rows import OURS, QUIET_LOAD, STEADY_SPREAD, Row, noise


def render(document: Row) -> str:
    """Everything that was measured, and the bars of all of it at the end."""
    rows, quick = document["results"], document["quick"]
    parts = [machine(document["machine"]), _contestants(document["contestants"])]
    if quick:
        parts.append("Quick run: smaller arrays, few rounds. The bars are for the full sizes: shown, but not judged.")
    parts += [_timing(row) for row in rows if "contestants" in row]
    parts += [part for part in [_reading([row for row in rows if "ns_a_call" in row])] if part]
    parts += [part for part in [_bars(rows, quick), noise_warning(rows)] if part]
    return "\n\n".join(parts) + "\n"


def machine(machine: Row) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    return (
        f"{machine['cpu']}, {machine['cpus']} CPUs, {machine['memory_gib']} GiB, "
        f"huge pages: {machine['transparent_hugepages']}\n"
        f"{machine['threads']} threads ({machine['thread_source']}), {machine['simd']}; "
        f"{versions}, Python {machine['python']}; {machine['date']}"
    )


def _contestants(contestants: Row) -> str:
    lines = []
    for name, record in contestants.items():
        version = "" if record["version"] is None else f" {record['version']}"
        rows = f"in {record['rows']} row{'' if record['rows'] == 1 else 's'}" if record["rows"] else ""
        lines.append(f"  {name}{version}: " + "; ".join(part for part in (rows, record["left_out"]) if part))
    return "\n".join(["Beside torch and the floor:", *lines])


def noise_warning(rows: list[Row]) -> str:
    """Empty where the machine was quiet."""
    timed = [row for row in rows if "other_load" in row]
    noisy = [row for row in timed if noise(row)]
    if not noisy:
        return ""
    return (
        f"WARNING: {len(noisy)} of {len(timed)} rows are noisy: others used more than {QUIET_LOAD:.0%} of the CPUs, or "
        f"the quartiles of the floor's own repeats lie more than {STEADY_SPREAD:.0%} apart."
    )


def _timing(row: Row) -> str:
    if "flops" in row:
        size = f"{row['flops'] / 1e9:.3g} GFLOP"
        figures = {
            "GFLOP/s": ("gflop_per_s", ".1f"),
            "of peak": ("share_of_peak", ".0%"),
            "MiB": ("peak_growth", "MiB"),
        }
    else:
        size = f"{row['tensors']:,} tensor{'s' if row['tensors'] > 1 else ''}, {row['elements']:,} elements"
        size += "" if row["bytes_per_element"] is None else f", {row['bytes_per_element']} B an element"
        figures = {"GB/s": ("gb_per_s", ".1f"), "of floor's": ("share_of_floor_bandwidth", ".0%")}
    lines = [f"{row['operation']}, {row['case']}: {size}{_noisy(row)}"]
    header = ["", "ms", "quartiles", "rounds", *figures, f"{OURS}/it", "quartiles"]
    body = []
    for name, contestant in row["contestants"].items():
        seconds = contestant["seconds"]
        ratio = row["ratios"].get(name)
        body.append(
            [
                name,
                f"{seconds['median'] * 1e3:.3f}",
                f"{seconds['q1'] * 1e3:.3f}-{seconds['q3'] * 1e3:.3f}",
                str(contestant["rounds"]),
                *(_number(contestant[key], form) for key, form in figures.values()),
                "" if ratio is None else f"{ratio['median']:.3f}",
                "" if ratio is None else f"{ratio['q1']:.3f}-{ratio['q3']:.3f}",
            ]
        )
    return "\n".join(lines + table(header, body))


def _reading(rows: list[Row]) -> str:
    if not rows:
        return ""
    header = ["reading a list of arrays", *_by_arrays(rows)]
    body: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        line = body.setdefault((row["binding"], row["source"]), [f"{row['binding']}: {row['source']}"])
        each = "" if row["ns_an_array"] is None else f" ({row['ns_an_array']:.1f} each)"
        line.append(f"{row['ns_a_call']['median']:,.0f} ns{each}")
    return "\n".join(["Overhead" + _noisy(rows[-1]), *table(header, list(body.values()))])


def _by_arrays(rows: list[Row]) -> list[str]:
    counts = dict.fromkeys(row["arrays"] for row in rows)
    return [f"{count:,} arrays" if count else "empty list" for count in counts]


def _bars(rows: list[Row], quick: bool) -> str:
    body = []
    for row in rows:
        for against, ratio in row.get("ratios", {}).items():
            if "at_most" in ratio:
                what = f"{row['operation']}, {row['case']}"
                reached, at_most = f"{ratio['median']:.3f}", f"{ratio['at_most']:.2f}"
                body.append([what, against, at_most, reached, _verdict(ratio["met"], ratio["noisy"], quick)])
        if "check" in row:
            peers = ", ".join(f"{name}: {_figure(value)}" for name, value in row["peers"].items())
            reached = " ".join([_figure(row[OURS]), row["unit"]]).strip()
            at_most = " ".join([f"{row['at_most']:g}", row["unit"]]).strip()
            body.append([row["check"], peers, at_most, reached, _verdict(row["met"], False, quick)])
    if not body:
        return ""
    return "\n".join(["Bars", *table(["", "against", "at most", "reached", "met"], body)])


def _verdict(met: bool | None, noisy: bool, quick: bool) -> str:
    if met is None:
        return "not measurable here"
    verdict = "yes" if met else "NO"
    return f"({verdict})" if quick else f"{verdict}, but noisy" if noisy else verdict


def _noisy(row: Row) -> str:
    reason = noise(row)
    return f" (noisy: {reason})" if reason else ""


def _number(value: float | None, form: str) -> str:
    if value is None:
        return ""
    return f"{value / 2**20:.1f}" if form == "MiB" else format(value, form)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def table(header: list[str], body: Iterable[list[str]]) -> list[str]:
    """Columns padded to their widest cell; the first one to the left, the others to the right."""
    lines = [header, *body]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return ["  ".join(_aligned(line, widths)).rstrip() for line in lines]


def _aligned(line: list[str], widths: list[int]) -> list[str]:
    first, *others = zip(line, widths, strict=True)
    return [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
