"""`svrt bench`: measures, and writes what was found as HTML, JSON and Markdown into one folder."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..errors import OutputError
from ..runtime.engines.files import write_whole
from . import markdown as text
from .compare import Comparison
from .figures import figures
from .page import page
from .samples import Report, Run
from .verdict import FAIL, INCONCLUSIVE, verdict

SAMPLE = Path(__file__).parent.parent / "models" / "pocket" / "sample" / "make.mp4"
RUNS = 20
HTML, JSON, MARKDOWN = "bench.html", "bench.json", "bench.md"
EXIT = {FAIL: 1, INCONCLUSIVE: 3}  # 2 is an error


class BenchDisplay:
    """Progress on stderr: a live bar on a terminal, a line for each process where there is none."""

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("measuring", total=None)

    def __enter__(self) -> BenchDisplay:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def report(self, run: Run, done: int, total: int) -> None:
        """Take note of one more run; with `--minutes` there are more than `total`."""
        self._progress.update(self._task, completed=done, total=max(done, total))
        if self._progress.disable and run.cold:
            print(f"svrt: process {run.process + 1}, {run.whole_ms:.0f} ms cold", file=sys.stderr, flush=True)


def to_json(report: Report) -> dict[str, Any]:
    """All samples, and under `figures` what is computed from them."""
    return {**report.to_json(), "figures": {**asdict(figures(report)), "verdict": asdict(verdict(report))}}


def check_writable(folder: Path) -> None:
    """Make the folder. Raises `OutputError` where nothing can be written there: asked before minutes of measuring."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(13, os.strerror(13))
    except OSError as exc:
        raise OutputError(f"{folder}: cannot write there: {exc.strerror}; give another --out") from exc


def write(report: Report, folder: Path) -> None:
    """Write the three files, each whole or not at all. Raises `OutputError` where the folder cannot be written."""
    files = {
        JSON: json.dumps(to_json(report), indent=1, allow_nan=False) + "\n",
        MARKDOWN: text.markdown(report),
        HTML: page(report),
    }
    write_files(folder, files)


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write texts by name, each whole or not at all. Raises `OutputError` where the folder cannot be written."""
    for name, content in files.items():
        try:
            write_whole(folder / name, content.encode())
        except OSError as exc:
            raise OutputError(f"{folder / name}: cannot be written: {exc.strerror}; give another --out") from exc


def show(report: Report, folder: Path) -> None:
    """Print a report for a person."""
    screen = console()
    found, judged = figures(report), verdict(report)
    screen.print(f"{report.bundle} on {text.machine_name(report.environment)}\n")
    for title, rows in (("warm, ms", text.warm_rows(found)), ("cold, ms", text.cold_rows(found))):
        screen.print(console_table((title, *text.STATS[1:]), rows), "")
    for name, value in text.key_figures(report, found):
        screen.print(f"{name}: {value}")
    screen.print("", *text.verdict_lines(judged), sep="\n")
    screen.print(f"\n{folder / HTML}, {JSON}, {MARKDOWN}")


def show_comparison(found: Comparison) -> None:
    """Print a comparison for a person."""
    screen = console()
    screen.print(f"A: {found.a}\nB: {found.b}\n")
    screen.print(console_table(text.COMPARED, text.comparison_rows(found)))
    if found.notes:
        screen.print("", *found.notes, sep="\n")


def console() -> Console:
    """Stdout for tables: a row that a pipe or a narrow terminal would cut is of no use."""
    made = Console(highlight=False, markup=False)
    made.width = max(made.width, 120)
    return made


def console_table(head: tuple[str, ...], rows: text.Rows) -> Table:
    """A table for a terminal, figures to the right."""
    table = Table(box=None, pad_edge=False)
    for index, name in enumerate(head):
        table.add_column(name, justify="right" if index and name else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
