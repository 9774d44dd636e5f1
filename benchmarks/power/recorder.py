"""Samples a reader in a thread of its own, on the monotonic clock."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

import numpy as np

from .reading import Reader, Reading
from .trace import LONGEST_GAP, Trace

LAST_READ_S = 2.0  # how long a sensor may hang before it is left behind


class Recorder:
    """A context manager; `trace` is what was sampled so far, or in all after the end.

        with Recorder(reader) as recorder:
            ...
        recorder.trace.energy(start, stop)

    The first reading is taken before the body begins and the last after it has ended, so that it is covered whole. A
    reading that fails is counted as missed and leaves a gap. A late one is not made up for. The reader is not closed:
    it may record an idle trace first. Raises `ValueError` for a period of 0 or less.
    """

    def __init__(self, reader: Reader, period_s: float = 0.1, clock: Callable[[], float] = time.monotonic) -> None:
        if not period_s > 0:
            raise ValueError("the period must be positive")
        self._reader, self._period_s, self._clock = reader, period_s, clock
        self._lock, self._ended, self._begun = threading.Lock(), threading.Event(), threading.Event()
        self._samples: list[tuple[float, Reading]] = []
        self._missed = 0
        self._cost_s = 0.0
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Recorder:
        self._thread = threading.Thread(target=self._record, name="power", daemon=True)
        self._thread.start()
        self._begun.wait(LONGEST_GAP * self._period_s)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join(LAST_READ_S)

    @property
    def trace(self) -> Trace:
        with self._lock:
            samples, missed, cost_s = list(self._samples), self._missed, self._cost_s
        # One kind of sample through the trace: a counter that once failed to answer is no counter.
        counted = bool(samples) and all(reading.joules is not None for _, reading in samples)
        if not counted:
            missed += sum(reading.watts is None for _, reading in samples)
            samples = [(at, reading) for at, reading in samples if reading.watts is not None]
        joules = np.array([reading.joules for _, reading in samples], np.float64) if counted else None
        return Trace(
            seconds=np.array([at for at, _ in samples], np.float64),
            watts=np.array([math.nan if r.watts is None else r.watts for _, r in samples], np.float64),
            rail=self._reader.rail,
            method=self._reader.method,
            joules=joules,
            parts=_columns([reading.parts for _, reading in samples]),
            temperatures_c=_columns([reading.temperatures_c for _, reading in samples]),
            period_s=self._period_s,
            missed=missed,
            cost_s=cost_s,
        )

    def _record(self) -> None:
        due = self._clock()
        while True:
            last = self._ended.is_set()
            self._sample()
            if self._samples:
                self._begun.set()
            if last:
                return
            now = self._clock()
            due += self._period_s * max(1, math.ceil((now - due) / self._period_s))
            self._ended.wait(due - now)

    def _sample(self) -> None:
        before = self._clock()
        try:
            reading = self._reader.read()
        except Exception:  # whatever a sensor does, the run that is being measured goes on
            reading = None
        after = self._clock()
        at = (before + after) / 2
        if reading is not None and reading.seconds is not None:
            at = reading.seconds
        with self._lock:
            self._cost_s = time.thread_time()
            if reading is None or not _has_value(reading) or (self._samples and at <= self._samples[-1][0]):
                self._missed += 1
            else:
                self._samples.append((at, reading))


def _has_value(reading: Reading) -> bool:
    values = [value for value in (reading.watts, reading.joules) if value is not None]
    return bool(values) and all(math.isfinite(value) for value in values)


def _columns(rows: list[dict[str, float]]) -> dict[str, np.ndarray]:
    """float64 [N] by name, NaN where a row lacks the name."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([row.get(name, math.nan) for row in rows], np.float64) for name in names}
