"""The results as pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...bundle import SamplerSpec
from ...errors import SvrtError
from .footage import LONG, REAL, SHORT
from .recall import Share
from .results import Measured, Table
from .seen import LEVELS
from .variants import COUNTS, PAPER_SAMPLER, UNIFORM, at_level, with_count

COLOURS = {SHORT: "#7fb8da", LONG: "#1f5a92", REAL: "#d9772b"}
GREY = "#999999"
COVERED = "share of frames covered"
MEASURES: dict[str, Callable[[Measured], Share | None]] = {
    "event recall, within 1 frame": lambda row: row.recall.events if row.recall else None,
    "outcome accuracy": lambda row: row.sentences.outcome if row.sentences else None,
}


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure (inches). Raises `SvrtError` where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure  # type: ignore[import-not-found,unused-ignore]
    except ImportError as exc:
        raise SvrtError(f"the plots lack matplotlib ({exc}); run: pip install 'svrt[bench]'") from exc
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def write_plots(table: Table, spec: SamplerSpec, out: Path) -> None:
    """`variants.png`, `keyframes.png` and `level.png` in the folder `out`."""
    plot_variants(table, out / "variants.png")
    counts = sorted({*COUNTS, spec.keyframes})
    by_count = {name: [with_count(spec, name, count) for count in counts] for name in (PAPER_SAMPLER, UNIFORM)}
    plot_along(table, "keyframes K", counts, by_count, out / "keyframes.png")
    levels = sorted({*LEVELS, spec.level})
    plot_along(table, "wavelet level", levels, {PAPER_SAMPLER: [at_level(spec, n) for n in levels]}, out / "level.png")


def plot_variants(table: Table, path: Path) -> None:
    """Recall and outcome of every variant that chooses as many keyframes as the paper's sampler."""
    first = next(iter(table.groups.values()))
    names = [name for name, row in first.items() if row.keyframes == first[PAPER_SAMPLER].keyframes]
    figure = new_figure(9.5, 0.42 * len(names) + 1.6)
    for axes, (title, of) in zip(figure.subplots(1, 2, sharey=True), MEASURES.items(), strict=True):
        groups = _with(table, of)
        for number, group in enumerate(groups):
            places = [index + 0.24 * (number - (len(groups) - 1) / 2) for index in range(len(names))]
            rows = [table.groups[group][name] for name in names]
            shares = [share for row in rows if (share := of(row))]
            style = {"color": COLOURS[group], "fmt": "o", "markersize": 5, "elinewidth": 1.5, "label": group}
            axes.errorbar([s.share for s in shares], places, xerr=_errors(shares), zorder=3, **style)
            axes.axvline(shares[0].share, color=COLOURS[group], linewidth=0.8, linestyle=":", zorder=1)
            if title.startswith("event"):
                axes.plot([row.coverage for row in rows], places, "|", color=GREY, markersize=10, zorder=2)
        axes.set_title(title, fontsize="medium")
        _tidy(axes, "x")
    axes.plot([], [], "|", color=GREY, markersize=10, label=COVERED)
    axes.plot([], [], ":", color=GREY, label=PAPER_SAMPLER)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    _legend(figure, columns=5)
    figure.savefig(path)


def plot_along(table: Table, label: str, values: Sequence[int], lines: Mapping[str, Sequence[str]], path: Path) -> None:
    """Recall and outcome along `values`; `lines` names the variant at each value, by legend: the second is dashed."""
    apart = 0.06 * min(b - a for a, b in pairwise(values))  # so that intervals can be told apart
    figure = new_figure(9.5, 4.2)
    for axes, (title, of) in zip(figure.subplots(1, 2, sharey=True), MEASURES.items(), strict=True):
        series = [(line, group) for group in _with(table, of) for line in lines]
        for number, (line, group) in enumerate(series):
            shares = [share for name in lines[line] if (share := of(table.groups[group][name]))]
            places = [value + apart * (number - (len(series) - 1) / 2) for value in values]
            dashed = line != next(iter(lines))
            style = {"color": COLOURS[group], "linestyle": "--" if dashed else "-", "marker": "o", "markersize": 5}
            style |= {"markerfacecolor": "white"} if dashed else {}
            axes.errorbar(places, [s.share for s in shares], _errors(shares), **style, label=f"{line}, {group}")
        axes.set_xticks(values)
        axes.set_xlabel(label)
        axes.set_title(title, fontsize="medium")
        _tidy(axes, "y")
    _legend(figure, columns=min(3, len(lines) * len(table.groups)))
    figure.savefig(path)


def _with(table: Table, of: Callable[[Measured], Share | None]) -> list[str]:
    return [group for group, rows in table.groups.items() if of(rows[PAPER_SAMPLER])]


def _errors(shares: Sequence[Share]) -> list[list[float]]:
    return [[max(0.0, s.share - s.low) for s in shares], [max(0.0, s.high - s.share) for s in shares]]


def _tidy(axes: Any, grid: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, alpha=0.3)
    axes.tick_params(length=0)


def _legend(figure: Any, columns: int) -> None:
    """One legend under all panels, each label once, the grey ones last."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    labels = sorted(found, key=lambda label: label in (COVERED, PAPER_SAMPLER))
    style = {"loc": "outside lower center", "frameon": False, "fontsize": "small"}
    figure.legend([found[label] for label in labels], labels, ncols=columns, **style)
