"""Two processes, ours and a peer's, loaded side by side and run in turn: ours, theirs, ours, theirs.

What disturbs the machine so disturbs both. Each is a process group of its own, and is killed with all that it started
when the block ends, however it ends.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from ...errors import SvrtError
from ...runtime.engines.trial import least_cosine
from ..harness import as_raised
from .contestants import OURS, Outputs, Task
from .worker import PREPARE

MEASURED, MISSING, FAILED = "measured", "not installed", "failed"
PAUSE_S = 0.2  # before each run: threads that one side leaves spinning (OpenBLAS's, for 30 ms) would slow the other

_ENVIRONMENT = {  # of every process; nothing is downloaded, no compiler's helpers stay
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}


@dataclass(frozen=True)
class Side:
    """One side of a duel: milliseconds by what is timed, and the process's peak memory in MiB."""

    precision: str
    note: str
    load_ms: float
    first_ms: float
    peak_mib: float
    samples: dict[str, list[float]]


@dataclass(frozen=True)
class Agreement:
    """How far a peer's outputs are ours: the least cosine of arrays, keyframes shared out of all, texts the same.

    None where a stage does not give such a thing, or a peer had another prompt.
    """

    cosine: float | None = None
    keyframes: tuple[int, int] | None = None
    same_text: bool | None = None
    texts: tuple[str, str] | None = None


@dataclass(frozen=True)
class Duel:
    """What one stage of one peer came to; without figures where `state` says that it is not installed, or failed."""

    stage: str
    peer: str
    state: str
    why: str = ""
    ours: Side | None = None
    theirs: Side | None = None
    agreement: Agreement = field(default_factory=Agreement)


class PeerError(Exception):
    """A contestant that cannot run here: `state` is `MISSING` or `FAILED`."""

    def __init__(self, state: str, why: str) -> None:
        super().__init__(why)
        self.state = state


class Child:
    """A contestant's process, loaded."""

    def __init__(self, peer: str, process: subprocess.Popen[str], complaints: IO[str]) -> None:
        self._peer, self.process, self._complaints = peer, process, complaints

    def expect(self, event: str) -> dict[str, Any]:
        """Wait for its next event. Raises `PeerError` where it says, or shows by dying, that it cannot go on, and
        `SvrtError` where it met one."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = json.loads(line) if line.endswith("\n") else {"event": "died"}
        kind = found.pop("event")
        if kind == "missing":
            raise PeerError(MISSING, found["package"])
        if kind == "failed":
            raise PeerError(FAILED, found["why"])
        if kind == "error":
            raise as_raised(found)
        if kind != event:
            raise PeerError(FAILED, self._how_it_died())
        return dict(found)

    def run(self) -> dict[str, float]:
        """One run: milliseconds by what is timed."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise PeerError(FAILED, self._how_it_died()) from None
        return dict(self.expect("ran")["ms"])

    def end(self) -> float:
        """Let it end; its peak memory in MiB."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return float(self.expect("end")["peak_mib"])

    def _how_it_died(self) -> str:
        status = self.process.wait()
        self._complaints.seek(0)
        lines = [line.strip() for line in self._complaints if line.strip()]
        how = f"{self._peer} was killed by signal {-status}" if status < 0 else f"{self._peer} ended with {status}"
        return f"{how}: {lines[-1]}" if lines else how


@contextmanager
def child(task: Task, outputs: Path) -> Iterator[Child]:
    """A contestant's process; neither it nor what it started outlives the block."""
    command = [sys.executable, "-m", "svrt.benchmarks.peers.worker", json.dumps(asdict(task)), str(outputs)]
    own = {"TORCHINDUCTOR_CACHE_DIR": str(task.prepared / "compiled")}
    with tempfile.TemporaryFile("w+", errors="replace") as complaints:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            cwd=os.sep,  # Python would import from the folder it starts in
            env={**os.environ, **_ENVIRONMENT, **own},
            start_new_session=True,
        )
        try:
            yield Child(task.peer, process, complaints)
        finally:
            _kill(process)


def _kill(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError):  # all of them have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # what was still to be written to it
                pipe.close()


def prepare(task: Task, what: str) -> None:
    """Make what contestants read (see `prepare.WORK`) in a process that ends. Raises `PeerError`, or `SvrtError`."""
    with child(replace(task, peer=PREPARE, stage=what), task.prepared / "none") as process:
        process.expect("ready")


def fight(task: Task, runs: int, text: Callable[[list[int]], str]) -> Duel:
    """Hold the contestant of `task` against ours, `runs` runs each; `text` turns token ids into words.

    Where either cannot do it, as where memory is too small for both, the duel says so: others go on.
    """
    mine = replace(task, peer=OURS)
    places = [task.prepared / "ours.npz", task.prepared / "theirs.npz"]
    try:
        with child(mine, places[0]) as ours, child(task, places[1]) as theirs:
            told = [ours.expect("ready"), theirs.expect("ready")]
            samples: list[dict[str, list[float]]] = [{}, {}]
            for _ in range(runs):
                for side, found in zip((ours, theirs), samples, strict=True):
                    time.sleep(PAUSE_S)
                    for name, ms in side.run().items():
                        found.setdefault(name, []).append(ms)
            peaks = [ours.end(), theirs.end()]
    except (PeerError, SvrtError) as exc:
        return Duel(task.stage, task.peer, getattr(exc, "state", FAILED), str(exc))
    sides = [Side(**said, peak_mib=peak, samples=found) for said, peak, found in zip(told, peaks, samples, strict=True)]
    agreement = agree(read_outputs(places[0]), read_outputs(places[1]), text)
    return Duel(task.stage, task.peer, MEASURED, "", sides[0], sides[1], agreement)


def read_outputs(place: Path) -> Outputs:
    """What a worker kept."""
    with np.load(place) as arrays:
        return Outputs(arrays=dict(arrays), **json.loads(place.with_suffix(".json").read_text(encoding="utf-8")))


def agree(ours: Outputs, theirs: Outputs, text: Callable[[list[int]], str]) -> Agreement:
    """Hold outputs against each other, as far as both have them."""
    cosine = least_cosine(theirs.arrays, ours.arrays) if ours.arrays and theirs.arrays else None
    shared = None
    if ours.keyframes is not None and theirs.keyframes is not None:
        shared = len(set(ours.keyframes) & set(theirs.keyframes)), len(set(ours.keyframes))
    said = [_words(one, text) for one in (ours, theirs)]
    if said[0] is None or said[1] is None:
        return Agreement(cosine, shared)
    return Agreement(cosine, shared, said[0] == said[1], (said[0], said[1]))


def _words(given: Outputs, text: Callable[[list[int]], str]) -> str | None:
    if given.text is not None:
        return given.text.strip()
    return None if given.token_ids is None else text(given.token_ids).strip()
