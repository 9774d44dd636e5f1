"""Whether the machine could hold its pace: over-current counters, temperatures, clocks and their limits over a run."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from . import sysfs, thermal

# Jetson: kernel hwmon `soctherm_oc`. The counters are cumulative.
ALARMS = {"oc1": "under-voltage", "oc2": "average over-current", "oc3": "instantaneous over-current"}
GPU_NODES = ("ga10b", "gpu")  # device-tree names of Orin's and others' GPU
ALERTS = ("throttle-alert", "hot-surface-alert")  # cooling devices of Jetson: software tells others that it slows down
COOLED = ("cpufreq-", "devfreq-", "thermal-cpufreq", "thermal-devfreq")  # cooling devices that lower a clock
LEAST_SNAPSHOTS = 5  # of a third of the run: fewer say nothing about a clock
BUSY = 0.9


@dataclass(frozen=True)
class Clock:
    """A clock and the most it may be now, in Hz; `load` from 0 to 1. None where unknown."""

    hz: int | None
    most_hz: int | None
    load: float | None = None


@dataclass(frozen=True)
class Condition:
    """The machine at one moment (`time.monotonic`). `events` are cumulative counts; `cooling` the state of each device
    that slows the machine down, 0 for none. What cannot be read is absent.
    """

    seconds: float
    events: dict[str, int] = field(default_factory=dict)
    temperatures_c: dict[str, float] = field(default_factory=dict)
    clocks: dict[str, Clock] = field(default_factory=dict)
    cooling: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """What still counts as steady. `sag` is the share that a clock may lose; `hottest_c` adds a limit of one's own to
    the temperatures from which the kernel slows down.
    """

    sag: float = 0.1
    hottest_c: float | None = None


def snapshot(root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> Condition:
    """The machine now. `root` holds `sys`. A machine without any of it gives an empty condition."""
    return Condition(
        clock(), _events(root), thermal.temperatures(thermal.zones(root)), _gpu(root) | _cpus(root), _cooling(root)
    )


def judge(
    conditions: Sequence[Condition], limits: Limits | None = None, trips_c: dict[str, float] | None = None
) -> list[str]:
    """Reasons, a line each, why a run under these conditions says little about the machine; none where it was steady.

    `trips_c` are the temperatures from which the kernel slows down, by zone.
    """
    if not conditions:
        return []
    limits = limits or Limits()
    return [
        *_counted(conditions),
        *_hot(conditions, limits, trips_c or {}),
        *_cooled(conditions),
        *_lowered(conditions),
        *_sagged(conditions, limits),
    ]


class Watch:
    """Takes a snapshot at the start, every period, and at the end, in a thread of its own. See `watch`."""

    def __init__(self, root: Path, period_s: float, limits: Limits, clock: Callable[[], float]) -> None:
        self._root, self._period_s, self._limits, self._clock = root, period_s, limits, clock
        self._ended = threading.Event()
        self._trips_c = thermal.passive_trips(thermal.zones(root))
        self._thread = threading.Thread(target=self._look, name="condition", daemon=True)
        self.conditions: list[Condition] = []

    def __enter__(self) -> Watch:
        self.look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.look()

    def look(self) -> None:
        """Take a snapshot now."""
        self.conditions.append(snapshot(self._root, self._clock))

    def _look(self) -> None:
        while not self._ended.wait(self._period_s):
            self.look()

    @property
    def reasons(self) -> list[str]:
        """Why the run is inconclusive; empty where nothing was seen to slow it down."""
        return judge(list(self.conditions), self._limits, self._trips_c)

    @property
    def throttled(self) -> bool:
        return bool(self.reasons)

    def summary(self) -> dict[str, Any]:
        """Plain values for a report: temperatures at start, maximum and end; clocks at start, minimum and end; events
        over the run; reasons.
        """
        seen = list(self.conditions)
        temperatures = {name: _over(seen, "temperatures_c", name) for name in _names(seen, "temperatures_c")}
        clocks = {name: [c.clocks[name].hz for c in seen if name in c.clocks] for name in _names(seen, "clocks")}
        return {
            "snapshots": len(seen),
            "temperatures_c": {
                name: {"start": values[0], "max": max(values), "end": values[-1]}
                for name, values in temperatures.items()
            },
            "clocks_hz": {
                name: {"start": hz[0], "min": min((v for v in hz if v is not None), default=None), "end": hz[-1]}
                for name, hz in clocks.items()
            },
            "events": {name: v[-1] - v[0] for name in _names(seen, "events") if (v := _over(seen, "events", name))},
            "throttled": self.throttled,
            "reasons": self.reasons,
        }


def watch(
    root: Path = Path("/"),
    period_s: float = 1.0,
    limits: Limits | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Watch:
    """A context manager around a run: `conditions`, `throttled`, `reasons`, `summary()`. `root` holds `sys`."""
    return Watch(root, period_s, limits or Limits(), clock)


def _events(root: Path) -> dict[str, int]:
    """Counts since boot: over-current of a Jetson; thermal throttling of x86, as the highest of all cores."""
    found: dict[str, int] = {}
    for name in sysfs.folders(root, "sys/class/hwmon/hwmon*/name"):
        if sysfs.text(name) == "soctherm_oc":
            for file in sysfs.folders(name.parent, "oc*_event_cnt"):
                alarm = file.name.partition("_")[0]
                count = sysfs.integer(file)
                if count is not None:
                    found[f"{alarm} {ALARMS[alarm]}" if alarm in ALARMS else alarm] = count
    for kind in ("core", "package"):
        files = sysfs.folders(root, f"sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/{kind}_throttle_count")
        counts = [count for file in files if (count := sysfs.integer(file)) is not None]
        if counts:
            found[f"{kind} thermal throttling"] = max(counts)
    return found


def _gpu(root: Path) -> dict[str, Clock]:
    for folder in sysfs.folders(root, "sys/class/devfreq/*"):
        if sysfs.text(folder / "device/of_node/name") in GPU_NODES or folder.name.startswith("gpu-gpc"):  # Orin, Thor
            load = sysfs.integer(folder / "device/load")
            hz, most_hz = sysfs.integer(folder / "cur_freq"), sysfs.integer(folder / "max_freq")
            return {"gpu": Clock(hz, most_hz, None if load is None else load / 1000)}
    return {}


def _cpus(root: Path) -> dict[str, Clock]:
    found = {}
    for folder in sysfs.folders(root, "sys/devices/system/cpu/cpufreq/policy*"):
        now, most = sysfs.integer(folder / "scaling_cur_freq"), sysfs.integer(folder / "scaling_max_freq")
        clock = Clock(None if now is None else now * 1000, None if most is None else most * 1000)
        found[folder.name.replace("policy", "cpu")] = clock
    return found


def _cooling(root: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for folder in sysfs.folders(root, "sys/class/thermal/cooling_device*"):
        name, state = sysfs.text(folder / "type") or "", sysfs.integer(folder / "cur_state")
        if state is not None and (name.endswith(ALERTS) or name.startswith(COOLED)):
            found[name] = max(state, found.get(name, 0))
    return found


def _names(conditions: Sequence[Condition], kind: str) -> list[str]:
    return list(dict.fromkeys(name for condition in conditions for name in getattr(condition, kind)))


def _over(conditions: Sequence[Condition], kind: str, name: str) -> list[Any]:
    """Values of one name over the run, where it could be read."""
    return [getattr(condition, kind)[name] for condition in conditions if name in getattr(condition, kind)]


def _counted(conditions: Sequence[Condition]) -> list[str]:
    reasons = []
    for name in _names(conditions, "events"):
        counts = _over(conditions, "events", name)
        if any(after < before for before, after in pairwise(counts)):
            reasons.append(f"{name}: the counter was reset during the run")
        elif counts[-1] > counts[0]:
            reasons.append(f"{name}: {counts[-1] - counts[0]} events during the run")
        elif name not in conditions[0].events or name not in conditions[-1].events:
            reasons.append(f"{name}: the counter could not be read through to the end")
    return reasons


def _hot(conditions: Sequence[Condition], limits: Limits, trips_c: dict[str, float]) -> list[str]:
    reasons = []
    for name in _names(conditions, "temperatures_c"):
        most = max(_over(conditions, "temperatures_c", name))
        if name in trips_c and most >= trips_c[name]:
            reasons.append(f"{name} reached {most:.1f} °C: the kernel slows down from {trips_c[name]:.1f} °C")
        elif limits.hottest_c is not None and most > limits.hottest_c:
            reasons.append(f"{name} reached {most:.1f} °C, above the limit of {limits.hottest_c:.1f} °C")
    return reasons


def _cooled(conditions: Sequence[Condition]) -> list[str]:
    states = {name: max(_over(conditions, "cooling", name)) for name in _names(conditions, "cooling")}
    return [f"{name} was at work (state {state})" for name, state in states.items() if state > 0]


def _lowered(conditions: Sequence[Condition]) -> list[str]:
    reasons = []
    for name in _names(conditions, "clocks"):
        most = [clock.most_hz for clock in _over(conditions, "clocks", name) if clock.most_hz is not None]
        if most and min(most) < most[0]:
            reasons.append(f"{name}: its clock was capped at {min(most) / 1e6:.0f} MHz, from {most[0] / 1e6:.0f} MHz")
    return reasons


def _sagged(conditions: Sequence[Condition], limits: Limits) -> list[str]:
    """Clocks that are lower in the last third of the run than in the first, or below their most under load."""
    reasons = []
    for name, values in _high_clocks(conditions).items():
        third = len(values) // 3
        if third >= LEAST_SNAPSHOTS:
            first, last = (float(np.percentile(part, 90)) for part in (values[:third], values[-third:]))
            if last < first * (1 - limits.sag):
                reasons.append(f"{name}: its clock sagged from {first / 1e6:.0f} to {last / 1e6:.0f} MHz")
    busy = [c for c in _over(conditions, "clocks", "gpu") if c.load is not None and c.load >= BUSY]
    shares = [c.hz / c.most_hz for c in busy if c.hz is not None and c.most_hz]
    if len(shares) >= LEAST_SNAPSHOTS and float(np.median(shares)) < 1 - limits.sag:
        reasons.append(f"gpu: under load its clock was at {np.median(shares):.0%} of what its power mode allows")
    return reasons


def _high_clocks(conditions: Sequence[Condition]) -> dict[str, list[int]]:
    """Hz over the run: the GPU's, and the fastest core's, because work wanders from core to core."""
    gpu = [c.clocks["gpu"].hz for c in conditions if "gpu" in c.clocks]
    cores = [[k.hz for name, k in c.clocks.items() if name != "gpu" and k.hz is not None] for c in conditions]
    found = {"gpu": [hz for hz in gpu if hz is not None], "cpu": [max(hz) for hz in cores if hz]}
    return {name: values for name, values in found.items() if values}
