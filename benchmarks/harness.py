"""Runs a benchmark: processes one after the other, each cold once and then warm, while memory and power are recorded.

Every process loads the bundle anew, so that figures are of several processes and not of one's luck; clips take turns.
No two processes hold the bundle at once: a small board has room for one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import cv2

from .. import errors
from ..bundle import Bundle, sha256_of
from ..errors import ClipError, SvrtError
from ..runtime.video import check_file
from .energy import Meter
from .environment import environment
from .memory import MemoryRecorder
from .samples import SCHEMA, Clip, Process, Report, Run
from .worker import Task

PROCESSES = 5
IDLE_S = 3.0  # of power at rest, where it is measured
SETTLE_S = 0.3  # of memory at rest, before the first process

Say = Callable[[Run, int, int], None]


@dataclass(frozen=True)
class Job:
    """What to measure: `runs` warm runs of each clip at least, and for `minutes` at least, in `most_processes`."""

    bundle: Bundle
    clips: list[Path]
    runs: int
    minutes: float = 0.0
    backend: str = "auto"
    limits: dict[str, float] | None = None
    most_processes: int = PROCESSES

    @property
    def processes(self) -> int:
        """How many processes share the runs."""
        return min(self.most_processes, self.runs)

    @property
    def total(self) -> int:
        """How many runs there are, cold and warm, where no time is set."""
        return self.processes + self.runs * len(self.clips)

    def task(self, process: int, began: float) -> Task:
        """What one process does. `began` is the benchmark's beginning on the monotonic clock."""
        share, more = divmod(self.runs, self.processes)
        return Task(
            bundle=str(self.bundle.path.absolute()),
            clips=[str(clip.absolute()) for clip in self.clips],
            backend=self.backend,
            first=process % len(self.clips),
            rounds=share + (process < more),
            until=began + self.minutes * 60 * (process + 1) / self.processes,
        )


def measure(job: Job, say: Say = lambda *_: None, meter: Meter | None = None) -> Report:
    """Run the benchmark; `say` is told of each run, with how many are done and how many there are at least.

    Raises `SvrtError` where the bundle or a clip cannot be used, with the reason that `svrt describe` would give.
    """
    clips = [describe_clip(path) for path in job.clips]
    surroundings = environment()
    log = _Log(began=time.monotonic())
    used = time.process_time()
    meter = Meter() if meter is None else meter
    meter.rest(IDLE_S if meter.present else SETTLE_S)
    with meter, MemoryRecorder(log.began) as memory:
        time.sleep(SETTLE_S)
        for index in range(job.processes):
            _run_process(job.task(index, log.began), index, log, memory, lambda run: say(run, len(log.runs), job.total))
    used = time.process_time() - used
    condition, disturbed = meter.condition()
    return Report(
        schema=SCHEMA,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        svrt=version("svrt"),
        bundle=job.bundle.manifest.name,
        bundle_sha256=job.bundle.sha256,
        backends=log.backends,
        environment={**surroundings, "load_after": environment()["load_before"], "versions": log.versions},
        clips=clips,
        processes=log.processes,
        runs=log.runs,
        memory=memory.trace,
        power=meter.power(log.began, log.runs),
        condition=condition,
        disturbed=disturbed,
        limits=job.limits or {},
        measuring_share=used / (time.monotonic() - log.began),
    )


def make_ready(bundle: Bundle, backend: str) -> None:
    """Load a bundle once in a process that is not measured: the first use of all tries backends or builds engines,
    and holds more memory than any later one. Raises `SvrtError` as `measure` does.
    """
    task = Task(str(bundle.path.absolute()), [], backend, first=0, rounds=0, until=0.0)
    with tempfile.TemporaryFile("w+", errors="replace") as complaints, _child(task, complaints) as child:
        for event in _events(child):
            if event.pop("event") == "error":
                raise as_raised(event)
        if child.wait():
            raise _died(child.returncode, complaints)


def describe_clip(path: Path) -> Clip:
    """What a clip is, without decoding it. Raises `ClipError` where it is no readable file."""
    check_file(path)
    capture = cv2.VideoCapture(str(path.absolute()))
    try:
        if not capture.isOpened():
            raise ClipError(f"{path}: not a video that can be read; check the file")
        frames, fps, width, height = (
            float(capture.get(key))
            for key in (
                cv2.CAP_PROP_FRAME_COUNT,
                cv2.CAP_PROP_FPS,
                cv2.CAP_PROP_FRAME_WIDTH,
                cv2.CAP_PROP_FRAME_HEIGHT,
            )
        )
    finally:
        capture.release()
    declared = fps if 0 < fps < 1e6 else 0.0  # NaN is neither
    return Clip(path.name, sha256_of(path), max(0, int(frames)), declared, int(width), int(height))


class _Log:
    """What the processes said so far."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.runs: list[Run] = []
        self.processes: list[Process] = []
        self.backends: dict[str, str] = {}
        self.versions: dict[str, str] = {}


def _run_process(task: Task, index: int, log: _Log, memory: MemoryRecorder, say: Callable[[Run], None]) -> None:
    """Start one process, and note what it says until it ends."""
    with tempfile.TemporaryFile("w+", errors="replace") as complaints:
        started = time.monotonic()
        ready: dict[str, Any] = {}
        peak: float | None = None
        with _child(task, complaints) as child:
            memory.follow(child.pid)
            for event in _events(child):
                kind = event.pop("event")
                if kind == "run":
                    log.runs.append(_run(event, index, log.began))
                    say(log.runs[-1])
                elif kind == "ready":
                    ready = event
                elif kind == "end":
                    peak = event["peak_rss_mib"]
                    memory.follow(None)
                elif kind == "error":
                    raise as_raised(event)
            child.wait()
        if peak is None or not ready:
            raise _died(child.returncode, complaints)
    log.backends, log.versions = ready["backends"], ready["versions"]
    log.processes.append(
        Process(
            start_s=started - log.began,
            imported_s=ready["imported"] - log.began,
            loaded_s=ready["loaded"] - log.began,
            stop_s=time.monotonic() - log.began,
            peak_rss_mib=peak,
        )
    )


@contextmanager
def _child(task: Task, complaints: IO[str]) -> Iterator[subprocess.Popen[str]]:
    """A worker; it does not outlive the block."""
    command = [sys.executable, "-m", "svrt.benchmarks.worker", json.dumps(asdict(task))]
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=complaints,
        text=True,
        cwd=os.sep,  # Python would import from the folder it starts in
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()


def _events(child: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert child.stdout is not None
    for line in child.stdout:
        yield json.loads(line)


def _run(event: dict[str, Any], process: int, began: float) -> Run:
    event["start_s"], event["stop_s"] = event.pop("start") - began, event.pop("stop") - began
    return Run(process=process, **event)


def as_raised(event: dict[str, Any]) -> SvrtError:
    """The error that the process met, as the class it was there."""
    kind = getattr(errors, event["kind"], SvrtError)
    found: SvrtError = kind(event["message"])
    return found


def _died(status: int, complaints: IO[str]) -> SvrtError:
    complaints.seek(0)
    lines = [line.strip() for line in complaints if line.strip()]
    last = lines[-1] if lines else "it said nothing"
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    return SvrtError(f"a process of the benchmark {how}: {last}; does `svrt describe` work here?")
