"""Power and energy of discrete NVIDIA GPUs through NVML (docs.nvidia.com/deploy/nvml-api), by ctypes.

On Jetson the library loads and initialises, names a device that ends in `(nvgpu)`, and then answers NotSupported: there
it counts as no sensor.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Protocol

from .reading import NoSensorError, Reading

LIBRARY = "libnvidia-ml.so.1"
TEMPERATURE_GPU = 0
NAME_BYTES = 96


class Nvml(Protocol):
    """The few questions asked of the library. A device that cannot answer gives None."""

    def names(self) -> list[str]: ...
    def milliwatts(self, device: int) -> int | None: ...
    def millijoules(self, device: int) -> int | None: ...
    def celsius(self, device: int) -> int | None: ...
    def close(self) -> None: ...


class NvmlLibrary:
    """`libnvidia-ml.so.1`. Raises `NoSensorError` where it is absent or does not initialise."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
            failed = self._library.nvmlInit_v2()
        except (OSError, AttributeError) as exc:
            raise NoSensorError(f"no NVIDIA driver: {LIBRARY} does not load") from exc
        if failed:
            raise NoSensorError(f"NVML does not initialise (error {failed}): nvidia-smi says more")
        count = ctypes.c_uint()
        self._devices: list[ctypes.c_void_p] = []
        if self._library.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0:
            for index in range(count.value):
                handle = ctypes.c_void_p()
                if self._library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0:
                    self._devices.append(handle)

    def names(self) -> list[str]:
        text = ctypes.create_string_buffer(NAME_BYTES)
        found = []
        for handle in self._devices:
            failed = self._library.nvmlDeviceGetName(handle, text, NAME_BYTES)
            found.append("" if failed else text.value.decode("utf-8", "replace"))
        return found

    def milliwatts(self, device: int) -> int | None:
        value = ctypes.c_uint()
        return self._ask("nvmlDeviceGetPowerUsage", device, value)

    def millijoules(self, device: int) -> int | None:
        value = ctypes.c_ulonglong()
        return self._ask("nvmlDeviceGetTotalEnergyConsumption", device, value)

    def celsius(self, device: int) -> int | None:
        value = ctypes.c_uint()
        failed = self._library.nvmlDeviceGetTemperature(self._devices[device], TEMPERATURE_GPU, ctypes.byref(value))
        return None if failed else value.value

    def close(self) -> None:
        self._library.nvmlShutdown()

    def _ask(self, name: str, device: int, value: ctypes.c_uint | ctypes.c_ulonglong) -> int | None:
        function = getattr(self._library, name, None)  # an old driver lacks the younger ones
        if function is None or function(self._devices[device], ctypes.byref(value)):
            return None
        return value.value


class NvmlReader:
    """All GPUs that NVML can measure, added up: the whole board of each, not the computer around them.

    Raises `NoSensorError` where NVML measures none.
    """

    method = "nvml"

    def __init__(self, nvml: Nvml, clock: Callable[[], float] = time.monotonic) -> None:
        self._nvml, self._clock = nvml, clock
        names = nvml.names()
        if any(name.endswith("(nvgpu)") for name in names):
            raise NoSensorError("NVML measures nothing on a Jetson's own GPU")
        self._gpus = {f"GPU {i} ({name})": i for i, name in enumerate(names) if nvml.milliwatts(i)}
        if not self._gpus:
            raise NoSensorError("NVML measures the power of no GPU here")
        self.rail = " + ".join(self._gpus)
        start = {i: nvml.millijoules(i) for i in self._gpus.values()}
        self._start = None if None in start.values() else {i: value or 0 for i, value in start.items()}

    def read(self) -> Reading | None:
        parts = {name: mw / 1e3 for name, i in self._gpus.items() if (mw := self._nvml.milliwatts(i))}
        joules, now = self._joules(), self._clock()
        if not parts and joules is None:
            return None
        watts = sum(parts.values()) if len(parts) == len(self._gpus) else None
        celsius = {name: self._nvml.celsius(i) for name, i in self._gpus.items()}
        temperatures = {name: float(value) for name, value in celsius.items() if value is not None}
        return Reading(watts, parts, temperatures, joules, now)

    def close(self) -> None:
        self._nvml.close()

    def _joules(self) -> float | None:
        """Joules since the reader was made; None where a GPU does not count them (before Volta)."""
        if self._start is None:
            return None
        now = {i: self._nvml.millijoules(i) for i in self._start}
        if any(value is None or value < self._start[i] for i, value in now.items()):
            return None
        return sum((value or 0) - self._start[i] for i, value in now.items()) / 1e3
