"""Temperatures and trip points of the kernel's thermal zones."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from . import sysfs

ZONES = "sys/class/thermal/thermal_zone*"
POSSIBLE_C = (-40.0, 150.0)  # outside it a zone without power has answered with a placeholder


def zones(root: Path) -> dict[str, Path]:
    """Folders of the thermal zones, by type; where several have one type, by type and number."""
    found: dict[str, Path] = {}
    for folder in sysfs.folders(root, ZONES):
        name = sysfs.text(folder / "type")
        if name:
            found[name if name not in found else f"{name} {folder.name.removeprefix('thermal_zone')}"] = folder
    return found


def temperatures(folders: dict[str, Path]) -> dict[str, float]:
    """Degrees Celsius by zone; a zone that cannot be read now is absent."""
    read = {name: _celsius(folder / "temp") for name, folder in folders.items()}
    return {name: celsius for name, celsius in read.items() if celsius is not None}


def passive_trips(folders: dict[str, Path]) -> dict[str, float]:
    """The temperature from which the kernel slows the machine down, by zone: the lowest trip of type `passive`."""
    found: dict[str, float] = {}
    for name, folder in folders.items():
        for kind in sysfs.folders(folder, "trip_point_*_type"):
            celsius = _celsius(kind.with_name(kind.name.replace("_type", "_temp")))
            if sysfs.text(kind) == "passive" and celsius is not None and celsius > 0:
                found[name] = min(celsius, found.get(name, celsius))
    return found


def _celsius(path: Path) -> float | None:
    milli = sysfs.integer(path)
    if milli is None or not POSSIBLE_C[0] < milli / 1000 < POSSIBLE_C[1]:
        return None
    return milli / 1000


class Thermometer:
    """Temperatures once a second at most: a zone costs a call to the firmware."""

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic, every_s: float = 1.0) -> None:
        self._zones, self._clock, self._every_s = zones(root), clock, every_s
        self._due = clock()

    def read(self) -> dict[str, float]:
        """Degrees Celsius by zone, or nothing where the last reading is younger than a second."""
        now = self._clock()
        if now < self._due:
            return {}
        self._due = now + self._every_s
        return temperatures(self._zones)
