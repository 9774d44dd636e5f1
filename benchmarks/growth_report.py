"""What growth was found: exponents and verdicts from the samples, as JSON, HTML, Markdown and on a terminal."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from . import markdown as text
from .exponent import Exponent, exponent
from .growth import CLIPS, JSON, RATE, RESOLUTION, UNITS, WHOLE, Growth, Sample
from .page import growth_charts, render
from .samples import STAGES
from .verdict import FAIL, INCONCLUSIVE, PASS

HTML, MARKDOWN = "growth.html", "growth.md"
LINEAR = 1.15  # the highest exponent that counts as linear: larger frames miss caches that smaller ones hit
NEGLIGIBLE = 0.02  # of the whole's highest time: what grows by less is not seen in it
FLAT = {CLIPS: 1.03}  # highest memory over that at the start (of many clips: after `SETTLED`); by frames' size it grows
FLAT_ELSEWHERE = 1.10
SETTLED = 20
MEMORY = "peak memory"
HEAD = ("against", "what", "from", "to", "exponent", "95 %", "verdict")
NOTE = (
    f"p of a + b x^p. Nothing may grow faster than linearly: PASS up to {LINEAR}, or where it grows by less than a "
    f"quarter, or by less than {NEGLIGIBLE:.0%} of the whole. Memory must be flat; a decoder keeps whole frames, so "
    "against resolution it may grow linearly."
)


@dataclass(frozen=True)
class Finding:
    """How one step, or memory, grows along one axis. `first` and `last` are in `unit`, at the least and the most x."""

    axis: str
    step: str
    unit: str
    first: float
    last: float
    exponent: Exponent | None
    verdict: str


def findings(growth: Growth) -> list[Finding]:
    """Every step of every axis, and its memory."""
    found = []
    for axis in UNITS:
        samples = growth.of(axis)
        if samples:
            found += [_time(axis, step, samples) for step in (WHOLE, *STAGES)]
            found.append(_memory(axis, samples))
    return found


def result(found: list[Finding]) -> str:
    """The verdict on all of it."""
    verdicts = {one.verdict for one in found}
    return FAIL if FAIL in verdicts else INCONCLUSIVE if INCONCLUSIVE in verdicts else PASS


def _time(axis: str, step: str, samples: list[Sample]) -> Finding:
    x = [one.point.x for one in samples]
    medians = [median(one.ms[step]) for one in samples]
    whole = max(median(one.ms[WHOLE]) for one in samples)
    fitted = exponent(x, [one.ms[step] for one in samples]) if min(medians) > 0 else None
    if max(medians) - min(medians) < NEGLIGIBLE * whole and step != WHOLE:
        return Finding(axis, step, "ms", medians[0], medians[-1], fitted, PASS)
    return Finding(axis, step, "ms", medians[0], medians[-1], fitted, _no_faster_than_linear(fitted))


def _no_faster_than_linear(fitted: Exponent | None) -> str:
    if fitted is None:
        return INCONCLUSIVE
    return PASS if fitted.high <= LINEAR else FAIL if fitted.low > LINEAR else INCONCLUSIVE


def _memory(axis: str, samples: list[Sample]) -> Finding:
    peaks = [max(one.peak_rss_mib) for one in samples]
    if axis == RESOLUTION:
        fitted = exponent([one.point.x for one in samples], [one.peak_rss_mib for one in samples])
        return Finding(axis, MEMORY, "MiB", peaks[0], peaks[-1], fitted, _no_faster_than_linear(fitted))
    settled = [peak for one, peak in zip(samples, peaks, strict=True) if axis != CLIPS or one.point.x >= SETTLED]
    if axis == CLIPS and len(settled) < 2:
        return Finding(axis, MEMORY, "MiB", peaks[0], peaks[-1], None, INCONCLUSIVE)
    flat = max(settled) <= settled[0] * FLAT.get(axis, FLAT_ELSEWHERE)
    return Finding(axis, MEMORY, "MiB", settled[0], max(settled), None, PASS if flat else FAIL)


def rows(found: list[Finding]) -> text.Rows:
    """The table `HEAD`."""
    table = []
    for one in found:
        fitted = one.exponent
        cells = (text.NONE, text.NONE)
        if fitted is not None:
            cells = (
                ("flat", "") if fitted.value == 0 else (f"{fitted.value:.2f}", f"{fitted.low:.2f} to {fitted.high:.2f}")
            )
        first, last = (f"{text.number(value)} {one.unit}" for value in (one.first, one.last))
        table.append([one.axis, one.step, first, last, *cells, one.verdict])
    return table


def head_lines(found: list[Finding]) -> list[str]:
    """The verdict, and what is not PASS."""
    words = {FAIL: "grows too fast", INCONCLUSIVE: "cannot be told from these samples"}
    reasons = [f"{one.step} against {one.axis}: {words[one.verdict]}" for one in found if one.verdict in words]
    return [result(found), *reasons]


def to_json(growth: Growth) -> dict[str, Any]:
    """All samples, and under `figures` what is computed from them."""
    found = findings(growth)
    figures = {
        "curves": [asdict(curve) for curve in growth.curves()],
        "findings": [asdict(one) for one in found],
        "verdict": result(found),
    }
    return {**asdict(growth), "figures": figures}


def markdown(growth: Growth) -> str:
    """Tables that paste into an issue."""
    found = findings(growth)
    head, *reasons = head_lines(found)
    parts = [f"## svrt bench growth: {growth.bundle}, {text.machine_name(growth.environment)}"]
    parts.append("\n".join([f"**{head}**", *(f"- {reason}" for reason in reasons)]))
    parts.append(text.table(HEAD, rows(found)) + f"\n\n{NOTE}")
    for curve in growth.curves():
        lines = [
            [f"{x:g}", text.number(ms), *(text.number(curve.stages_ms[stage][i]) for stage in STAGES), text.number(mib)]
            for i, (x, ms, mib) in enumerate(zip(curve.x, curve.whole_ms, curve.peak_rss_mib, strict=True))
        ]
        head_row = (curve.unit, f"{WHOLE}, ms", *STAGES, f"{MEMORY}, MiB")
        parts.append(f"### Against {curve.title}\n\n" + text.table(head_row, lines))
    return "\n\n".join(parts) + "\n"


def page(growth: Growth) -> str:
    """One HTML page, in the style of the benchmark's."""
    found = findings(growth)
    head, *reasons = head_lines(found)
    notes = {
        CLIPS: "All clips so far, one process. Memory: the highest resident since the point before.",
        RATE: "Clips of equal length.",
    }
    charts = []
    for axis, curve in zip([axis for axis in UNITS if growth.of(axis)], growth.curves(), strict=True):
        charts += growth_charts(curve, (notes.get(axis, ""), ""))
    return render(
        "growth.html.j2",
        growth=growth,
        machine=text.machine_name(growth.environment),
        result=head,
        head=head,
        reasons=reasons,
        charts=charts,
        note=NOTE,
        head_row=HEAD,
        rows=rows(found),
    )


def write(growth: Growth, folder: Path) -> None:
    """Write the three files, each whole or not at all. Raises `OutputError` where the folder cannot be written."""
    from .bench import write_files

    write_files(
        folder,
        {
            JSON: json.dumps(to_json(growth), indent=1, allow_nan=False) + "\n",
            MARKDOWN: markdown(growth),
            HTML: page(growth),
        },
    )


def show(growth: Growth, folder: Path) -> None:
    """Print it for a person."""
    from .bench import console, console_table

    screen, found = console(), findings(growth)
    screen.print(f"{growth.bundle} on {text.machine_name(growth.environment)}\n")
    screen.print(console_table(HEAD, rows(found)), "", *head_lines(found), sep="\n")
    screen.print(f"\n{folder / HTML}, {JSON}, {MARKDOWN}")
