"""Power of a Jetson through its INA3221 monitors (and the INA238 of AGX Thor), as hwmon files of JetPack 5 to 7.

Layout: Jetson Linux Developer Guide, "Power and Performance"; units: kernel Documentation/hwmon/ina3221.rst and
ina238.rst. hwmon numbers change between boots, so that rails are found by their labels.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import rails, sysfs
from .reading import NoSensorError, Reading
from .thermal import Thermometer

MONITORS = "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*"
INPUT_MONITORS = "sys/bus/i2c/drivers/ina238/*/hwmon/hwmon*"
CHANNELS = (1, 2, 3)  # in4 to in6 are voltages across the shunts, in7 their sum


@dataclass(frozen=True)
class Rail:
    """Files of one rail: millivolts and milliamperes, or microwatts."""

    millivolts: Path | None
    milliamperes: Path | None
    microwatts: Path | None = None

    def watts(self) -> float | None:
        """Watts now; None where a register cannot be read."""
        if self.microwatts is not None:
            micro = sysfs.integer(self.microwatts)
            return None if micro is None else micro / 1e6
        if self.millivolts is None or self.milliamperes is None:
            return None
        volts, amperes = sysfs.integer(self.millivolts), sysfs.integer(self.milliamperes)
        return None if volts is None or amperes is None else volts * amperes / 1e6


def find_rails(root: Path) -> dict[str, Rail]:
    """Every labelled rail under `root`, by label; rails that are not connected (`NC`, no label) are left out."""
    found: dict[str, Rail] = {}
    for folder in sysfs.folders(root, MONITORS):
        for channel in CHANNELS:
            label = sysfs.text(folder / f"in{channel}_label")
            if label and label != "NC":
                found.setdefault(label, Rail(folder / f"in{channel}_input", folder / f"curr{channel}_input"))
    for folder in sysfs.folders(root, INPUT_MONITORS):
        # The kernel's driver gives no label; the only such chip on a Jetson is at Thor's input.
        found.setdefault(sysfs.text(folder / "in1_label") or "VIN", Rail(None, None, folder / "power1_input"))
    return found


class Ina3221Reader:
    """Reads all rails at each call, two registers of about 0.5 ms each a rail. `root` holds `sys`.

    Raises `NoSensorError` where there are no rails, none makes a total, or they cannot be read.
    """

    method = "ina3221"

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        self._rails = find_rails(root)
        if not self._rails:
            raise NoSensorError("no INA3221 power monitor under /sys/bus/i2c/drivers/ina3221")
        readable = self._parts()
        if not readable:
            raise NoSensorError(
                "the INA3221 power monitor cannot be read: run as root, or give read rights to its files"
            )
        total = rails.total_of(readable)
        if total is None:
            raise NoSensorError(f"the power monitor's rails make no total: {', '.join(sorted(readable))}")
        self._total = total
        self.rail = " + ".join(total)
        self._thermometer = Thermometer(root, clock)

    def read(self) -> Reading | None:
        parts = self._parts()
        if not parts:
            return None
        return Reading(rails.add_up(parts, self._total), parts, self._thermometer.read())

    def close(self) -> None:
        pass

    def _parts(self) -> dict[str, float]:
        read = {name: rail.watts() for name, rail in self._rails.items()}
        return {name: watts for name, watts in read.items() if watts is not None}
