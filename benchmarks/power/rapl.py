"""Energy of an x86 processor through RAPL, as the kernel's powercap files give it.

Layout and units: kernel Documentation/power/powercap/powercap.rst. AMD processors appear under the same names.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from . import sysfs
from .reading import NoSensorError, Reading
from .thermal import Thermometer

DOMAINS = "sys/class/powercap/intel-rapl:*"
TRIAL_S = 0.1  # the counter moves every millisecond; one that stood still for so long is not counting


class Domain:
    """One counter, in joules since it was made; `max_energy_range_uj` is where the kernel's value starts over."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "energy_uj"
        self._range = sysfs.integer(folder / "max_energy_range_uj")
        self._last: int | None = sysfs.integer(self.file)
        self.joules = 0.0

    def read(self) -> bool:
        """Bring `joules` up to date; False where the counter cannot be read, or fell without a known range."""
        now = sysfs.integer(self.file)
        if now is None or now < 0:
            return False
        step = 0 if self._last is None else now - self._last
        if step < 0:
            if not self._range or self._range < now:
                return False
            step += self._range
        self._last = now
        self.joules += step / 1e6
        return True


def find_domains(root: Path) -> dict[str, Path]:
    """Folders of the RAPL domains under `root`: `package-0`, and parts of it as `package-0/dram`."""
    names = {folder.name: sysfs.text(folder / "name") for folder in sysfs.folders(root, DOMAINS)}
    found: dict[str, Path] = {}
    for folder in sysfs.folders(root, DOMAINS):
        name, parent = names[folder.name], names.get(folder.name.rpartition(":")[0])
        if name:
            found[f"{parent}/{name}" if parent else name] = folder
    return found


class RaplReader:
    """Packages and their memory, added up. `watts` is the mean since the reading before. `root` holds `sys`.

    Raises `NoSensorError` where there is no package counter, it may not be read, or it does not count.
    """

    method = "rapl"

    def __init__(
        self,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        folders = find_domains(root)
        packages = [name for name in folders if name.startswith("package") and "/" not in name]
        if not packages:
            raise NoSensorError("no RAPL energy counter under /sys/class/powercap")
        readable = {name: folder for name, folder in folders.items() if sysfs.integer(folder / "energy_uj") is not None}
        if any(name not in readable for name in packages):
            raise NoSensorError("RAPL may not be read: sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj")
        self._domains = {name: Domain(folder) for name, folder in readable.items()}
        self._total = [name for name in readable if name in packages or name.endswith("/dram")]
        self.rail = " + ".join(self._total)
        self._clock = clock
        self._thermometer = Thermometer(root, clock)
        self._before: tuple[float, dict[str, float]] | None = None
        sleep(TRIAL_S)
        moved = self._update()
        if sum(moved.get(name, 0.0) for name in self._total) == 0:
            raise NoSensorError("RAPL does not count here: its value stands still, as in many virtual machines")

    def read(self) -> Reading | None:
        joules, now = self._update(), self._clock()
        if any(name not in joules for name in self._total):
            return None
        parts: dict[str, float] = {}
        watts = None
        if self._before is not None:
            then, before = self._before
            if now <= then:
                return None
            parts = {name: (joules[name] - before[name]) / (now - then) for name in joules if name in before}
            watts = sum(parts[name] for name in self._total)
            if watts <= 0:  # a package always draws something: a value that stands still is no measurement
                return None
        self._before = (now, joules)
        return Reading(watts, parts, self._thermometer.read(), sum(joules[name] for name in self._total), now)

    def close(self) -> None:
        pass

    def _update(self) -> dict[str, float]:
        """Joules by domain, of those counters that can be read now."""
        return {name: domain.joules for name, domain in self._domains.items() if domain.read()}
