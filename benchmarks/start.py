"""A new process that describes one clip of a second, from start to text: `python -m svrt.benchmarks.start`.

With the bundle's seal in place, and without, when every file is hashed; the two alternate within one run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .. import seal
from ..bundle import Bundle
from ..cache import engine_folder, open_bundle, seal_folder
from ..errors import SvrtError
from .growth import LENGTH, Point, write_clip

ROUNDS = 10
CLIP_S = 1.0


@dataclass(frozen=True)
class Start:
    """Medians in milliseconds: a process from start to end, and of it what `describe` took by its own clock."""

    sealed_ms: float
    hashed_ms: float
    describe_ms: float

    @property
    def before_ms(self) -> float:
        """Interpreter, imports, loading: what is not describing."""
        return self.sealed_ms - self.describe_ms


def measure(bundle: Bundle, rounds: int = ROUNDS) -> Start:
    """Run processes in turn. Raises `SvrtError` where one fails, with what it says."""
    seals = seal_folder()
    if seals is None:
        raise SvrtError("no folder to keep seals in; set XDG_CACHE_HOME")
    seal.load(bundle.path, seals)  # the first process would hash
    sealed, hashed, described = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        clip = write_clip(Path(folder), Point(LENGTH, CLIP_S, seconds=CLIP_S))
        for _ in range(rounds):
            ms, own = _run(bundle, clip, os.environ)
            sealed.append(ms)
            described.append(own)
            with tempfile.TemporaryDirectory() as empty:
                _remember_backends(Path(empty))
                hashed.append(_run(bundle, clip, {**os.environ, "XDG_CACHE_HOME": empty})[0])
    return Start(*(statistics.median(values) for values in (sealed, hashed, described)))


def _remember_backends(cache: Path) -> None:
    """Let what uses `cache` find which backends were taken: only the seal is to be missing."""
    engines = engine_folder()
    if engines is not None and engines.is_dir():
        (cache / engines.parent.name).mkdir()
        (cache / engines.parent.name / engines.name).symlink_to(engines.absolute())


def _run(bundle: Bundle, clip: Path, variables: Mapping[str, str]) -> tuple[float, float]:
    """Milliseconds of one process, and of its description."""
    command = [sys.executable, "-m", "svrt", "describe", str(clip), "--bundle", str(bundle.path.absolute()), "--json"]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=dict(variables), cwd=os.sep)
    ms = (time.perf_counter() - started) * 1e3
    if done.returncode:
        raise SvrtError(f"svrt describe failed: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
    return ms, float(json.loads(done.stdout)["timings_ms"]["total"])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m svrt.benchmarks.start", description=__doc__)
    parser.add_argument("--bundle", type=Path, help="bundle to use; the built-in one if not given")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    bundle = open_bundle(given.bundle)
    found = measure(bundle, given.rounds)
    size = sum(record.bytes for record in bundle.manifest.files.values()) / 1e6
    print(f"{bundle.manifest.name}, {size:.0f} MB, a clip of {CLIP_S:g} s, {given.rounds} new processes each\n")
    print("| | ms, median |\n| --- | --- |")
    print(f"| a process, bundle sealed | {found.sealed_ms:.0f} |")
    print(f"| of it before the clip: interpreter, imports, loading | {found.before_ms:.0f} |")
    print(f"| of it the description | {found.describe_ms:.0f} |")
    print(f"| a process that hashes the bundle | {found.hashed_ms:.0f} |")


if __name__ == "__main__":
    main()
