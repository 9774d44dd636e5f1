"""Running a compiler of this machine, and keeping what it makes."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import EngineError


def run_compiler(command: Sequence[str], cannot: str) -> str:
    """What it says. Raises `EngineError` where it refuses: `cannot`, and the first error it gives."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()] or ["no reason given"]
        reason = next((line for line in lines if "error" in line or "fatal" in line), lines[0])
        raise EngineError(f"{cannot}: {reason.strip()}")
    return done.stdout + done.stderr


def make_whole(out: Path, make: Callable[[Path], object]) -> None:
    """Have `make` write the file `out`, which is there whole or not at all. Raises `OSError`, and what `make` does."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        made = Path(scratch) / out.name
        make(made)
        with made.open("rb") as file:
            os.fsync(file.fileno())
        made.replace(out)
