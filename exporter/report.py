"""What a person sees of an export: a line per stage while it runs, a table at the end."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ..bundle import Bundle, Int8Record

LABELS = {
    "sources": "find and hash the sources",
    "random sampler": "draw random weights: VGG-16",
    "random encoder": "draw random weights: encoder",
    "random projector": "draw random weights: projector",
    "random decoder": "draw random weights: decoder",
    "random adapter": "draw random weights: LoRA",
    "vgg16": "write vgg16.onnx",
    "encoder": "write encoder.onnx",
    "calibrate": "calibrate the encoder for int8",
    "speed": "time the encoder in int8",
    "parity": "compare the graphs with their references",
    "merge": "merge the LoRA into the decoder",
    "quantize": "quantize the decoder",
    "decoder parity": "compare the decoder with its reference",
    "engines": "build TensorRT engines",
    "manifest": "write bundle.json",
}


class ExportDisplay:
    """Progress on stderr: live bars on a terminal, a line for each stage that ends where there is none."""

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
        self._began: dict[str, float] = {}

    def __enter__(self) -> ExportDisplay:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def report(self, stage: str, done: int, total: int) -> None:
        """Advance one stage; see `svrt.exporter.export.Report`."""
        finished = done >= total
        label = LABELS[stage]
        if stage not in self._tasks:
            label += " (kept from before)" if finished else ""
            self._tasks[stage] = self._progress.add_task(label, total=None)
            self._began[stage] = time.monotonic()
        self._progress.update(self._tasks[stage], completed=done, total=total if done or finished else None)
        if finished and not self._console.is_terminal:
            print(f"svrt: {label}: {time.monotonic() - self._began[stage]:.1f} s", file=sys.stderr, flush=True)

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
        for name, found in manifest.parity.items():
            if name not in manifest.files:
                figures = f"{found.relative_error:.1e}", f"{found.cosine:.6f}", found.reference
                table.add_row(Text(name), "f16", "not kept", *figures)
        console = Console(soft_wrap=True)
        console.print(table)
        for name, chosen in manifest.int8.items():
            console.print(Text(int8_line(name, chosen)))


def int8_line(name: str, record: Int8Record) -> str:
    """What became of a graph in int8, and whether it is any use here."""
    line = (
        f"{name}: {record.int8} of {record.products} products in int8, {record.share:.0%} of their weights; cosine "
        f"{record.cosine:.6f} on clips not calibrated on; {record.speed:.2f} times as fast here as the float32 "
        f"graph ({record.timed})"
    )
    return line if record.speed > 1 else f"{line}: for this machine export it without --precision int8"
