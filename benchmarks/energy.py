"""Power, energy and condition of the machine over a benchmark, through `svrt.benchmarks.power`."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .power import Recorder, find_reader, watch, why_none
from .samples import Power, Run, RunEnergy

if TYPE_CHECKING:
    from .power import Reader, Trace

NO_METHOD = "none"


class Meter:
    """Watches the machine below `root` until the block ends: its counters, temperatures and clocks, and its power where
    it has a sensor. `reader` replaces the sensor that would be found.
    """

    def __init__(self, root: Path = Path("/"), reader: Reader | None = None) -> None:
        self._reader = find_reader(root) if reader is None else reader
        self._note = "" if self._reader is not None else why_none(root)
        self._recorder = None if self._reader is None else Recorder(self._reader)
        self._watch = watch(root)
        self._idle: Trace | None = None

    @property
    def present(self) -> bool:
        """Whether there is a sensor."""
        return self._reader is not None

    def rest(self, seconds: float) -> None:
        """Let `seconds` pass, and record them as idle."""
        if self._reader is None:
            time.sleep(seconds)
            return
        with Recorder(self._reader) as recorder:
            time.sleep(seconds)
        self._idle = recorder.trace

    def __enter__(self) -> Meter:
        self._watch.__enter__()
        if self._recorder is not None:
            self._recorder.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._recorder is not None:
            self._recorder.__exit__(kind, error, trace)
        self._watch.__exit__(kind, error, trace)
        if self._reader is not None:
            self._reader.close()

    def condition(self) -> tuple[dict[str, Any], list[str]]:
        """What was seen of the machine's condition, and why its figures are doubtful, if they are."""
        return self._watch.summary(), self._watch.reasons

    def power(self, began: float, runs: Sequence[Run]) -> Power:
        """The trace and each run's energy, in seconds since `began` on the monotonic clock."""
        if self._recorder is None or self._reader is None:
            return Power(NO_METHOD, NO_METHOD, f"no power sensor: {self._note}")
        trace, idle = self._recorder.trace, self._idle
        note = "" if len(trace.seconds) > 1 else f"{trace.method} gave {len(trace.seconds)} samples"
        known = [index for index, watts in enumerate(trace.watts.tolist()) if math.isfinite(watts)]
        resting = None
        if idle is not None and len(idle.seconds) > 1:
            resting = idle.energy(float(idle.seconds[0]), float(idle.seconds[-1]))
        return Power(
            method=trace.method,
            rail=trace.rail,
            note=note,
            seconds=[float(trace.seconds[index]) - began for index in known],
            watts=[float(trace.watts[index]) for index in known],
            idle_w=None if resting is None else resting.watts,
            runs=[_run_energy(trace, idle, run, began) for run in runs],
        )


def _run_energy(trace: Trace, idle: Trace | None, run: Run, began: float) -> RunEnergy:
    whole = trace.energy(began + run.start_s, began + run.stop_s, idle)
    stretches = [(stage, began + start, began + stop) for stage, start, stop in run.stretches()]
    return RunEnergy(
        gross_j=None if whole is None else whole.joules,
        above_idle_j=None if whole is None else whole.above_idle_j,
        stages_j={s: None if found is None else found.joules for s, found in trace.stages(stretches, idle).items()},
    )
