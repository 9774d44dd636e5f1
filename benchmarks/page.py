"""The report as one HTML page: no network, no script; dark and light, wide and phone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from markupsafe import Markup

from . import markdown as text
from .charts import Band, Dot, Line, Part, lines, shown, strip, waterfall
from .figures import WHOLE, Figures, figures, grouped, of_stage
from .samples import OTHER, STAGES, Curve, Power, Report, Run
from .statistics import STATISTICS, stats
from .verdict import verdict

TEMPLATES = Path(__file__).parent
WIDE, PHONE = 920, 340  # pixels that a chart has
NEAR_RUNS = 4
MOST_BANDS = 600  # with more runs stages are too narrow to be seen


@dataclass(frozen=True)
class Chart:
    """A chart in two widths, what it shows, and how to read it. `legend` is (colour, name)."""

    title: str
    wide: Markup
    phone: Markup
    note: str = ""
    legend: tuple[tuple[str, str], ...] = ()


def page(report: Report) -> str:
    """The report as HTML."""
    found, judged = figures(report), verdict(report)
    head, *reasons = text.verdict_lines(judged)
    return render(
        "report.html.j2",
        report=report,
        machine=text.machine_name(report.environment),
        result=judged.result or "NONE",
        head=head,
        reasons=reasons,
        tiles=_tiles(report, found),
        charts=charts(report, found),
        stats=text.STATS,
        warm=text.warm_rows(found),
        cold=text.cold_rows(found),
        note=text.NOTE,
        by_clip=[text.row(clip.name, one) for clip, one in zip(report.clips, found.by_clip, strict=True)],
        figures=text.key_figures(report, found),
        machine_rows=text.machine_rows(report),
        condition=_condition_rows(report),
    )


def render(template: str, **values: object) -> str:
    """One of this folder's templates, filled in; text in `values` is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    engine = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return engine.get_template(template).render(values)


def charts(report: Report, found: Figures) -> list[Chart]:
    """Every chart that the report has data for; power always, if only to say why there is none."""
    drawn = [_stages(found), _start(found), _distribution(report), _by_stage(report), _in_order(report)]
    drawn += [_power(report), _power_of_some(report), _memory(report), *_growth(report)]
    return [chart for chart in drawn if chart is not None]


def _tiles(report: Report, found: Figures) -> list[tuple[str, str, str]]:
    """(name, value, unit) of what is looked at first."""
    whole, first = found.warm[WHOLE], found.warm["first_token"]
    tiles = [
        ("a clip, median", text.number(whole.p50 if whole else None), "ms"),
        ("p99", text.number(whole.p99 if whole else None), f"ms of {whole.n if whole else 0} runs"),
        ("first token", text.number(first.p50 if first else None), "ms"),
        ("generation", text.number(found.tokens_per_s.p50 if found.tokens_per_s else None), "tokens/s"),
        ("new process", text.number(found.cold.whole.p50 if found.cold else None), "ms"),
        ("peak memory", text.number(found.memory.peak_rss_mib), "MiB RSS"),
    ]
    energy = found.energy
    unit = f"J a clip, {report.power.rail}" if energy else "not measured"
    return [*tiles, ("energy", text.number(energy.joules_per_clip.p50 if energy else None), unit)]


def _stages(found: Figures) -> Chart | None:
    parts = [Part(name, max(0.0, one.p50), name) for name in (*STAGES, OTHER) if (one := found.warm[name]) is not None]
    if not parts:
        return None
    note = "Medians of warm runs, one stage after the other. What belongs to none is shown as other."
    return Chart("Where the time goes", waterfall(parts, WIDE), waterfall(parts, PHONE), note)


def _start(found: Figures) -> Chart | None:
    if found.cold is None:
        return None
    cold = found.cold
    parts = [
        Part("imports", cold.imports.p50, "process"),
        Part("load", cold.loading.p50, "load"),
        Part("describe", cold.describe.p50, "describe"),
    ]
    note = (
        f"Medians of {cold.whole.n} new processes, from their start to the end of the first text; hashes are "
        "checked by the first that finds no seal. The files may still lie in the system's cache."
    )
    return Chart("A new process", waterfall(parts, WIDE), waterfall(parts, PHONE), note)


def _distribution(report: Report) -> Chart | None:
    runs = report.warm()
    if not runs:
        return None
    dots = [_dot(report, run, run.whole_ms) for run in report.runs]
    pooled = [run.whole_ms for run in runs]
    marks = _marks(pooled)
    note = (
        f"Every run is a dot, outliers and all: {len(runs)} warm, {len(report.cold())} cold (hollow, without loading)."
    )
    wide, phone = (strip(dots, marks, "whole", width) for width in (WIDE, PHONE))
    return Chart("How much it varies", wide, phone, note + " Lines are percentiles of the warm ones.")


def _by_stage(report: Report) -> Chart | None:
    runs = report.warm()
    if not runs:
        return None
    drawn = []
    for width in (WIDE, PHONE):
        rows = []
        for stage in STAGES:
            dots = [_dot(report, run, run.ms(stage)) for run in runs]
            chart = strip(dots, _marks([dot.value for dot in dots]), stage, width)
            rows.append(Markup('<div class="row"><h3>{}</h3>{}</div>').format(stage, chart))
        drawn.append(Markup("").join(rows))
    return Chart(
        "Stage by stage", drawn[0], drawn[1], "Warm runs; each stage has its own scale, which need not begin at 0."
    )


def _in_order(report: Report) -> Chart | None:
    if not report.warm():
        return None
    curves = []
    for index in range(len(report.processes)):
        for clip in range(len(report.clips)):
            runs = [run for run in report.warm(clip) if run.process == index]
            if runs:
                curves.append(Line(f"{index}", [run.stop_s for run in runs], [run.whole_ms for run in runs], "whole"))
    bands = _process_bands(report)
    wide, phone = (lines(curves, width, "ms", bands=bands, dots=True, height=200) for width in (WIDE, PHONE))
    return Chart(
        "One run after the other", wide, phone, "Warm runs when they ended; a shade is a process, its start included."
    )


def _power(report: Report) -> Chart | None:
    power = report.power
    if len(power.seconds) < 2:
        note = Markup('<p class="none">{}</p>').format(f"Not measured: {power.note or 'no sample'}")
        return Chart("Power", note, note)
    idle = "" if power.idle_w is None else f" Idle before: {text.number(power.idle_w)} W."
    shaded = report.runs if len(report.runs) <= MOST_BANDS else []
    return _power_chart("Power", power, f"{power.rail}, by {power.method}, gross.{idle}", shaded)


def _power_of_some(report: Report) -> Chart | None:
    """The last warm runs, near enough for their stages to be seen."""
    power, runs = report.power, report.warm()[-NEAR_RUNS:]
    if len(power.seconds) < 2 or len(report.runs) <= NEAR_RUNS or not runs:
        return None
    start, stop = runs[0].start_s, runs[-1].stop_s
    known = [(at, w) for at, w in zip(power.seconds, power.watts, strict=True) if start - 0.1 <= at <= stop + 0.1]
    near = replace(power, seconds=[at for at, _ in known], watts=[watts for _, watts in known])
    return _power_chart(f"Power of the last {len(runs)} runs", near, "", runs) if known else None


def _power_chart(title: str, power: Power, note: str, runs: Sequence[Run]) -> Chart:
    bands = [
        Band(start, stop, stage, f"{stage}, {stop - start:.3f} s")
        for run in runs
        for stage, start, stop in run.stretches()
    ]
    curve = [Line(power.rail, power.seconds, list(power.watts), "power")]
    wide, phone = (lines(curve, width, "W", bands=bands) for width in (WIDE, PHONE))
    return Chart(title, wide, phone, note, tuple((stage, stage) for stage in STAGES) if runs else ())


def _memory(report: Report) -> Chart | None:
    trace = report.memory
    if not any(value is not None for value in trace.rss_mib):
        return None
    available = [value for value in trace.available_mib if value is not None]
    curves = [Line("resident", trace.seconds, trace.rss_mib, "rss")]
    legend = [("rss", "resident memory of the process")]
    if available:
        start = available[0]
        drop = [None if value is None else max(0.0, start - value) for value in trace.available_mib]
        curves.append(Line("MemAvailable drop", trace.seconds, drop, "available"))
        legend.append(("available", "drop of the machine's MemAvailable"))
    if any(value is not None for value in trace.gpu_mib):
        curves.append(Line("GPU", trace.seconds, trace.gpu_mib, "gpu"))
        legend.append(("gpu", f"GPU ({trace.gpu})"))
    bands = _process_bands(report)
    wide, phone = (lines(curves, width, "MiB", bands=bands) for width in (WIDE, PHONE))
    note = "Other programs move MemAvailable too. A shade is a process."
    return Chart("Memory", wide, phone, note, tuple(legend))


def _growth(report: Report) -> list[Chart]:
    """Curves that the report brings; and time against length, where its clips have several lengths."""
    drawn = [chart for curve in report.growth for chart in growth_charts(curve)]
    found = []
    for index, clip in enumerate(report.clips):
        whole = stats(grouped(report.warm(index), of_stage(WHOLE)))
        if clip.seconds is not None and whole is not None:
            found.append((clip.seconds, whole.p50))
    if len({seconds for seconds, _ in found}) > 1:
        found.sort()
        line = [Line("whole", [x for x, _ in found], [y for _, y in found], "whole")]
        wide, phone = (lines(line, width, "ms", dots=True, height=200) for width in (WIDE, PHONE))
        drawn.append(Chart("Growth: time against the clip's length", wide, phone, "Median of each clip's warm runs."))
    return drawn


def growth_charts(curve: Curve, notes: Sequence[str] = ("", "")) -> list[Chart]:
    """Time, whole and by stage, and peak memory against what grows; `notes` stand under their titles."""
    times = [Line("whole", curve.x, list(curve.whole_ms), "power")]  # ink: told from every stage
    times += [Line(stage, curve.x, list(ms), stage) for stage, ms in curve.stages_ms.items()]
    legend = tuple((line.kind, line.name) for line in times) if len(times) > 1 else ()
    memory = [Line("peak memory", curve.x, list(curve.peak_rss_mib), "rss")]
    drawn = []
    for name, unit, curves, note, key in (
        ("time", "ms", times, notes[0], legend),
        ("peak memory", "MiB", memory, notes[1], ()),
    ):
        wide, phone = (lines(curves, width, unit, curve.unit, dots=True) for width in (WIDE, PHONE))
        drawn.append(Chart(f"Growth: {name} against {curve.title}", wide, phone, note, key))
    return drawn


def _process_bands(report: Report) -> list[Band]:
    return [
        Band(one.start_s, one.stop_s, "process", f"process {index + 1}: peak {one.peak_rss_mib:.0f} MiB")
        for index, one in enumerate(report.processes)
        if index % 2 == 0
    ]


def _dot(report: Report, run: Run, value: float) -> Dot:
    kind = "cold" if run.cold else "warm"
    title = (
        f"{shown(value)} ms, {kind}, {report.clips[run.clip].name}, process {run.process + 1}, at {run.start_s:.1f} s"
    )
    return Dot(value, title, run.cold)


def _marks(values: list[float]) -> list[tuple[str, float]]:
    import numpy as np

    array = np.asarray(values, np.float64)
    return [(name, float(STATISTICS[name](array))) for name in ("p50", "p90", "p99")]


def _condition_rows(report: Report) -> list[list[str]]:
    """Temperatures and clocks at start, extreme and end; events over the run."""
    rows = []
    found = report.condition
    for name, values in (found.get("temperatures_c") or {}).items():
        rows.append([name, f"{values['start']:.1f} °C, at most {values['max']:.1f}, at the end {values['end']:.1f}"])
    for name, values in (found.get("clocks_hz") or {}).items():
        mhz = [text.NONE if values[key] is None else f"{values[key] / 1e6:.0f}" for key in ("start", "min", "end")]
        rows.append([f"{name} clock", f"{mhz[0]} MHz, at least {mhz[1]}, at the end {mhz[2]}"])
    for name, count in (found.get("events") or {}).items():
        rows.append([name, f"{count} events"])
    return rows
