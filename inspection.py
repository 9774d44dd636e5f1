"""What is in a bundle, for a person or a program: files, sizes, precision, parity, provenance, settings, engines.

Reads `bundle.json` and the sizes of files; their hashes are `svrt verify`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .bundle import Bundle, Manifest, TensorSpec

NOT_CHECKED = "sizes agree with the manifest; `svrt verify` also checks every hash"


@dataclass(frozen=True)
class Inspection:
    """A bundle as it lies on disk: every file is there and has the size the manifest says."""

    path: str
    sha256: str  # of bundle.json, which names every other file's
    total_bytes: int
    manifest: Manifest

    def to_json(self) -> dict[str, Any]:
        """The whole manifest and what was found, as plain values for `json.dumps`. Sizes were checked, hashes not."""
        found = {"path": self.path, "sha256": self.sha256, "total_bytes": self.total_bytes}
        return {**found, "checked": "sizes", "manifest": asdict(self.manifest)}


def inspect(path: Path) -> Inspection:
    """Read the bundle at `path` and check the sizes of its files.

    Raises `BundleError` naming the file that is missing, of another size, or of another schema.
    """
    bundle = Bundle.load(path, verify=False)
    total = sum(record.bytes for record in bundle.manifest.files.values())
    return Inspection(str(path), bundle.sha256, total, bundle.manifest)


def show(found: Inspection, console: Console | None = None) -> None:
    """Print it for a person, on stdout."""
    console = console or Console(highlight=False)
    manifest = found.manifest
    console.print(Text(f"{manifest.name}  {found.path}", style="bold"), soft_wrap=True)
    console.print(f"schema {manifest.schema}, written by svrt {manifest.svrt}; {found.total_bytes / 1e6:,.1f} MB")
    console.print(f"sha256 {found.sha256}", soft_wrap=True)
    console.print(f"{NOT_CHECKED}\n")
    for table in _tables(manifest):
        if table.row_count:
            console.print(table)
            console.print()


def _tables(manifest: Manifest) -> list[Table]:
    return [
        _files(manifest),
        _ends(manifest),
        _parity(manifest),
        _settings(manifest),
        _engines(manifest),
        _provenance(manifest),
    ]


def _table(first: str, *others: str, numbers: Sequence[str] = ()) -> Table:
    """A table without lines. Text folds rather than being cut: a name or a hash must be whole."""
    table = Table(box=None, pad_edge=False)
    for heading in (first, *others):
        table.add_column(heading, justify="right" if heading in numbers else "left", overflow="fold")
    return table


def _files(manifest: Manifest) -> Table:
    table = _table("file", "precision", "MB", "sha256", numbers=("MB",))
    for name, record in manifest.files.items():
        table.add_row(Text(name), Text(record.precision), f"{record.bytes / 1e6:,.1f}", record.sha256[:12])
    return table


def _ends(manifest: Manifest) -> Table:
    table = _table("graph", "", "name", "shape", "type")
    for name, record in manifest.files.items():
        for end, specs in (("in", record.inputs), ("out", record.outputs)):
            for spec in specs:
                table.add_row(Text(name), end, Text(spec.name), Text(_shape(spec)), spec.dtype)
    return table


def _shape(spec: TensorSpec) -> str:
    return "x".join(str(side) for side in spec.shape)


def _parity(manifest: Manifest) -> Table:
    table = _table("parity", "relative error", "cosine", "against", "on", numbers=("relative error", "cosine"))
    for name, found in manifest.parity.items():
        error, cosine = f"{found.relative_error:.1e}", f"{found.cosine:.6f}"
        table.add_row(Text(name), error, cosine, Text(found.reference), Text(found.data))
    return table


def _settings(manifest: Manifest) -> Table:
    table = _table("setting", "value")
    for part in ("sampler", "encoder", "decoder"):
        for key, value in asdict(getattr(manifest, part)).items():
            table.add_row(f"{part}.{key}", Text(_value(value)))
    return table


def _value(value: object) -> str:
    """A setting in one line: text is quoted, as prompts hold line ends and spaces that matter."""
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return repr(value) if isinstance(value, str) else str(value)


def _engines(manifest: Manifest) -> Table:
    table = _table("engine", "of", "backend", "compute capability", "device")
    for name, record in manifest.engines.items():
        backend = f"{record.backend} {record.version}"
        table.add_row(Text(name), Text(record.graph), Text(backend), record.compute_capability, Text(record.device))
    return table


def _provenance(manifest: Manifest) -> Table:
    table = _table("source", "from", "revision", "sha256")
    for role, source in manifest.provenance.items():
        table.add_row(role, Text(source.name), Text((source.revision or "")[:12]), source.sha256[:12])
    return table
