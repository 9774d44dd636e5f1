"""A report and a comparison as Markdown that pastes into an issue, and as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .compare import Comparison
from .figures import FIRST_TOKEN, MOST_OTHER, WHOLE, Figures, figures
from .samples import OTHER, STAGES, Report
from .statistics import Stats
from .verdict import FAIL, INCONCLUSIVE, PASS, Verdict, verdict

Rows = list[list[str]]
STATS = ("stage", "n", "p50", "p90", "p95", "p99", "min", "max", "95 % of p50")
NOTE = (
    "Milliseconds. p50 is the median; p90 and above are samples (nearest rank), so of few runs p99 is the maximum."
    " Outliers are kept."
)
NONE = "\N{EN DASH}"
_WORDS = {PASS: "kept", FAIL: "not kept", INCONCLUSIVE: "open"}
NAMES = {FIRST_TOKEN: "first token", WHOLE: "whole"}


def number(value: float | None, digits: int = 3) -> str:
    """A figure for a person, to `digits` significant digits; a dash where there is none."""
    if value is None:
        return NONE
    size = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:,.{max(0, digits - size)}f}"


def row(name: str, found: Stats | None) -> list[str]:
    """A line of the table `STATS`."""
    if found is None:
        return [name, "0", *(NONE for _ in STATS[2:])]
    cells = (found.p50, found.p90, found.p95, found.p99, found.min, found.max)
    return [name, str(found.n), *map(number, cells), f"{number(found.low)} to {number(found.high)}"]


def warm_rows(found: Figures) -> Rows:
    """Milliseconds of warm runs by stage."""
    return [row(NAMES.get(name, name), found.warm[name]) for name in (*STAGES, OTHER, WHOLE, FIRST_TOKEN)]


def cold_rows(found: Figures) -> Rows:
    """Milliseconds of new processes."""
    if found.cold is None:
        return []
    cold = found.cold
    parts = {
        "start and imports": cold.imports,
        "check and load bundle": cold.loading,
        "first clip": cold.describe,
        "whole": cold.whole,
        "first token": cold.first_token,
    }
    return [row(name, one) for name, one in parts.items()]


def key_figures(report: Report, found: Figures) -> Rows:
    """Name and value of what is no percentile of milliseconds."""
    memory, energy = found.memory, found.energy
    tokens = found.tokens_per_s
    rows = [
        [
            "tokens/s",
            NONE if tokens is None else f"{number(tokens.p50)} ({number(tokens.low)} to {number(tokens.high)})",
        ],
        ["clips/s", number(found.clips_per_s)],
        ["peak memory (RSS)", f"{number(memory.peak_rss_mib)} MiB"],
        ["MemAvailable drop", _mib(memory.available_drop_mib)],
        ["GPU memory", f"{_mib(memory.gpu_mib)} ({report.memory.gpu})"],
    ]
    if energy is None:
        rows.append(["energy", f"null: {report.power.note or 'no warm run lies whole within the power trace'}"])
    else:
        at = f"{report.power.rail}, {report.power.method}"
        above = NONE if energy.above_idle_j is None else number(energy.above_idle_j.p50)
        rows.append(["energy a clip", f"{number(energy.joules_per_clip.p50)} J gross, {above} J above idle ({at})"])
        if energy.joules_per_token is not None:
            rows.append(["energy a token", f"{number(energy.joules_per_token.p50)} J gross ({at})"])
        rows.append(["idle power", NONE if energy.idle_w is None else f"{number(energy.idle_w)} W"])
    share = found.other_share
    if share is not None:
        word = "within" if abs(share) <= MOST_OTHER else "NOT within"
        rows.append(["stages add up", f"{word} {MOST_OTHER:.0%} of the whole: at most {share:.2%} belongs to none"])
    rows.append(["measuring took", f"{report.measuring_share:.2%} of the time, on one core"])
    return rows


def _with_interval(found: Stats) -> str:
    return f"{number(found.p50)} ({number(found.low)} to {number(found.high)})"


def _mib(value: float | None) -> str:
    return NONE if value is None else f"{number(value)} MiB"


def machine_rows(report: Report) -> Rows:
    """What it ran on; what is not known is left out."""
    found = report.environment
    rows = [
        [name.replace("_", " "), str(found[name])]
        for name in ("board", "l4t", "cuda", "power_mode", "gpu", "processor", "cores", "kernel", "architecture")
        if found.get(name) is not None
    ]
    memory = found.get("memory_mib")
    rows.append(["memory", _mib(memory if isinstance(memory, float) else None)])
    for name, clock in (found.get("clocks") or {}).items():
        if isinstance(clock, dict):
            mhz = "/".join(NONE if clock.get(k) is None else f"{clock[k]:.0f}" for k in ("min", "cur", "max"))
            rows.append([f"{name} MHz min/now/max", f"{mhz}, {clock.get('governor')}"])
    if not found.get("clocks"):
        rows.append(["clocks", "not to be seen from here"])
    rows.append(["load before, after", "; ".join(str(found.get(key) or NONE) for key in ("load_before", "load_after"))])
    rows.append(["versions", ", ".join(f"{name} {number}" for name, number in (found.get("versions") or {}).items())])
    rows.append(["bundle", f"{report.bundle} {report.bundle_sha256[:12]}"])
    rows.append(["backends", ", ".join(f"{stage}: {name}" for stage, name in report.backends.items())])
    rows.append(["clips", "; ".join(map(clip_line, range(len(report.clips)), [report] * len(report.clips)))])
    rows.append(["measured", f"{report.created}, svrt {report.svrt}"])
    return rows


def clip_line(index: int, report: Report) -> str:
    """Name, size, frames and rate of a clip."""
    clip = report.clips[index]
    return f"{clip.name} ({clip.width}x{clip.height}, {clip.frames} frames at {clip.fps:g}/s)"


def verdict_lines(found: Verdict) -> list[str]:
    """The verdict and its reasons."""
    head = "No verdict: no limit was given" if found.result is None else found.result
    reasons = [reason for reason in found.reasons if reason != "no limit was given"]
    held = [f"{_WORDS[one.verdict]}: {one.reason}" for one in found.held if one.reason not in reasons]
    return [head, *reasons, *held]


def machine_name(environment: Mapping[str, Any]) -> str:
    """The board, or else the processor."""
    return str(environment.get("board") or environment.get("processor") or "a machine without a name")


def markdown(report: Report) -> str:
    """The report as Markdown."""
    found, judged = figures(report), verdict(report)
    head, *reasons = verdict_lines(judged)
    parts = [f"## svrt bench: {report.bundle}, {machine_name(report.environment)}"]
    parts.append("\n".join([f"**{head}**", *(f"- {reason}" for reason in reasons)]))
    parts.append("### Warm\n\n" + table(STATS, warm_rows(found)) + f"\n\n{NOTE}")
    if len(report.clips) > 1:
        rows = [row(clip.name, one) for clip, one in zip(report.clips, found.by_clip, strict=True)]
        parts.append("### Warm, whole, by clip\n\n" + table(("clip", *STATS[1:]), rows))
    parts.append("### Cold: a new process\n\n" + table(STATS, cold_rows(found)))
    parts.append("### Other figures\n\n" + table(("what", "value"), key_figures(report, found)))
    parts.append("### Machine\n\n" + table(("what", "value"), machine_rows(report)))
    return "\n\n".join(parts) + "\n"


def comparison_rows(found: Comparison) -> Rows:
    """A line a stage: medians, ratio, interval, and what that says."""
    rows = []
    for one in found.rows:
        between = NONE if one.low is None or one.high is None else f"{one.low:.3f} to {one.high:.3f}"
        ratio = NONE if one.ratio is None else f"{one.ratio:.3f}"
        name = NAMES.get(one.stage, one.stage)
        rows.append([name, number(one.a_ms), number(one.b_ms), f"{one.n_a}, {one.n_b}", ratio, between, one.verdict])
    return rows


COMPARED = ("stage", "A ms", "B ms", "n", "B / A", "95 % interval", "")


def comparison_markdown(found: Comparison) -> str:
    """The comparison as Markdown."""
    lines = [f"A: {found.a}", f"B: {found.b}", "", table(COMPARED, comparison_rows(found))]
    return "\n".join([*lines, *(["", *(f"- {note}" for note in found.notes)] if found.notes else [])]) + "\n"


def table(head: Sequence[str], rows: Rows) -> str:
    """A Markdown table; figures to the right where the second column is a count."""
    right = len(head) > 2
    rule = ["---", *(["---:" if right else "---"] * (len(head) - 1))]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in [list(head), rule, *rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
