"""What a benchmark ran on: board, releases, power mode, clocks, processor, memory. Unknown is None, never a guess."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..runtime.processors import usable_processors
from .memory import field_mib

_ARM_PARTS = {"0xd42": "Cortex-A78AE", "0xd83": "Neoverse V3AE"}  # MIDR_EL1: Orin, Thor

Runner = Callable[[Sequence[str]], "str | None"]


def run(command: Sequence[str]) -> str | None:
    """What a command prints, or None where it is absent, fails or takes over 5 s."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def environment(root: Path = Path("/"), runner: Runner = run) -> dict[str, Any]:
    """The machine below `root`, as plain values for JSON."""
    return {
        "board": _text(root / "proc/device-tree/model"),
        "l4t": l4t(_text(root / "etc/nv_tegra_release")),
        "cuda": _found(_text(root / "usr/local/cuda/version.json"), r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([^"]+)"'),
        "power_mode": _found(runner(["nvpmodel", "-q"]), r"NV Power Mode:\s*(\S+)"),
        "gpu": _line(runner(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"])),
        "processor": processor(root),
        "cores": usable_processors(),
        "memory_mib": field_mib(root / "proc/meminfo", "MemTotal"),
        "swap_mib": field_mib(root / "proc/meminfo", "SwapTotal"),
        "kernel": _text(root / "proc/sys/kernel/osrelease"),
        "architecture": platform.machine(),
        "load_before": _line(_text(root / "proc/loadavg")),
        "clocks": clocks(root),
    }


def l4t(release: str | None) -> str | None:
    """`36.4.3` of `# R36 (release), REVISION: 4.3, ...` (/etc/nv_tegra_release)."""
    found = re.search(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", release or "")
    return f"{found[1]}.{found[2]}" if found else None


def processor(root: Path) -> str | None:
    """The processor's name; Arm kernels give none, but a part number."""
    text = _text(root / "proc/cpuinfo") or ""
    found = _found(text, r"(?m)^model name\s*:\s*(.+)$")
    part = _found(text, r"(?m)^CPU part\s*:\s*(\S+)")
    return found or (
        {"0xd42": "Cortex-A78AE", "0xd83": "Neoverse V3AE"}.get(part, f"Arm part {part}") if part else None
    )


def clocks(root: Path) -> dict[str, dict[str, Any]]:
    """Clocks in MHz by name: `cur`, `min`, `max`, `governor` of processor clusters and of the GPU (cpufreq, devfreq).

    A machine whose clocks cannot be seen, as in most virtual machines, gives none.
    """
    found = {}
    for folder in sorted((root / "sys/devices/system/cpu/cpufreq").glob("policy*")):
        found[f"cpu {folder.name}"] = _clock(folder, "scaling_", 1e3)
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        name = (_text(folder / "device/of_node/name") or "").strip("\0")
        if name in ("ga10b", "gpu"):
            found[f"gpu {name}"] = _clock(folder, "", 1e6)
    return found


def _clock(folder: Path, prefix: str, unit: float) -> dict[str, Any]:
    clock: dict[str, Any] = {}
    for name in ("cur", "min", "max"):
        text = _text(folder / f"{prefix}{name}_freq")
        clock[name] = int(text) / unit if text and text.isdigit() else None
    return {**clock, "governor": _text(folder / f"{prefix}governor")}


def _text(file: Path) -> str | None:
    try:
        return file.read_text(errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def _found(text: str | None, pattern: str) -> str | None:
    match = re.search(pattern, text or "")
    return match[1].strip() if match else None


def _line(text: str | None) -> str | None:
    return text.strip().splitlines()[0] if text and text.strip() else None
