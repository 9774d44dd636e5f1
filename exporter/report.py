"""What a person sees of an export: a line per stage while it runs, a table at the end."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ..bundle import Bundle

LABELS = {
    "sources": "find and hash the sources",
    "vgg16": "write vgg16.onnx",
    "encoder": "write encoder.onnx",
    "parity": "compare the graphs with their references",
    "merge": "merge the LoRA into the decoder",
    "quantize": "quantize the decoder",
    "manifest": "compare the decoder, hash, write bundle.json",
}


class ExportDisplay:
    """Progress on stderr: live bars on a terminal, nothing where there is none."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ExportDisplay:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def report(self, stage: str, done: int, total: int) -> None:
        """Advance one stage; see `svrt.exporter.export.Report`."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(LABELS[stage], total=None)
        finished = done >= total
        self._progress.update(self._tasks[stage], completed=done, total=total if done or finished else None)

    def summary(self, bundle: Bundle) -> None:
        """Print what the bundle holds, on stdout."""
        manifest = bundle.manifest
        table = Table(title=Text(f"{manifest.name}  {bundle.path}"), title_justify="left", box=None, pad_edge=False)
        for heading in ("file", "precision", "MB", "relative error", "cosine", "against"):
            table.add_column(heading, justify="right" if heading in ("MB", "relative error", "cosine") else "left")
        for name, record in manifest.files.items():
            found = manifest.parity.get(name)
            figures = (f"{found.relative_error:.1e}", f"{found.cosine:.6f}", found.reference) if found else ("", "", "")
            table.add_row(Text(name), record.precision, f"{record.bytes / 1e6:.1f}", *figures)
        Console(soft_wrap=True).print(table)
