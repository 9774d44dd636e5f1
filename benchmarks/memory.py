"""Memory of a process, of the machine and of the GPU, sampled in a thread on the monotonic clock."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from pathlib import Path

from .samples import MemoryTrace

PERIOD_S = 0.1
_KIB = 1 / 1024


def field_mib(file: Path, name: str) -> float | None:
    """A `Name:  123 kB` line of a file such as /proc/meminfo, in MiB; None where it cannot be read (proc(5))."""
    try:
        for line in file.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * _KIB
    except (OSError, ValueError, IndexError):
        pass
    return None


def peak_rss_mib() -> float:
    """Peak resident memory of this process in MiB. getrusage would begin with what the parent held."""
    found = field_mib(Path("/proc/self/status"), "VmHWM")
    if found is None:
        raise OSError("/proc/self/status has no VmHWM")
    return found


class GpuMemory:
    """Memory in use on the first NVIDIA GPU, by all programs, through NVML (nvml.h, `nvmlDeviceGetMemoryInfo`).

    `what` says what is read, or why nothing is. A Jetson's GPU has no memory of its own: there NVML answers
    NotSupported, and MemAvailable is the figure.
    """

    class _Info(ctypes.Structure):
        _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]

    def __init__(self, open_library: Callable[[], ctypes.CDLL] = lambda: ctypes.CDLL("libnvidia-ml.so.1")) -> None:
        self._device = ctypes.c_void_p()
        self._library: ctypes.CDLL | None = None
        try:
            library = open_library()
            if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self._device)):
                self.what = "none: NVML finds no GPU"
                return
        except (OSError, AttributeError):
            self.what = "none: no NVIDIA driver here"
            return
        self._library = library
        if self.read() is None:
            self._library = None
            self.what = "none: the GPU shares the machine's memory, see MemAvailable"
            return
        name = ctypes.create_string_buffer(96)
        library.nvmlDeviceGetName(self._device, name, len(name))
        self.what = f"NVML, all programs on {name.value.decode(errors='replace') or 'GPU 0'}"

    def read(self) -> float | None:
        """MiB in use, or None."""
        if self._library is None:
            return None
        info = self._Info()
        if self._library.nvmlDeviceGetMemoryInfo(self._device, ctypes.byref(info)):
            return None
        return float(info.used) / 2**20


class MemoryRecorder:
    """Samples memory until the block ends. `follow` names the process whose resident memory is read."""

    def __init__(self, began: float, root: Path = Path("/"), gpu: GpuMemory | None = None) -> None:
        self._began, self._proc = began, root / "proc"
        self._gpu = GpuMemory() if gpu is None else gpu
        self._process: int | None = None
        self._samples: list[tuple[float, float | None, float | None, float | None]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._record, name="svrt-memory", daemon=True)
        self.busy_s = 0.0  # processor time of sampling

    def follow(self, process: int | None) -> None:
        """Read this process from now on; None for no process."""
        self._process = process

    @property
    def trace(self) -> MemoryTrace:
        """What was sampled so far."""
        samples = list(self._samples)
        return MemoryTrace(
            seconds=[sample[0] for sample in samples],
            rss_mib=[sample[1] for sample in samples],
            available_mib=[sample[2] for sample in samples],
            gpu_mib=[sample[3] for sample in samples],
            gpu=self._gpu.what,
        )

    def _sample(self) -> None:
        process = self._process
        rss = None if process is None else field_mib(self._proc / str(process) / "status", "VmRSS")
        available = field_mib(self._proc / "meminfo", "MemAvailable")
        self._samples.append((time.monotonic() - self._began, rss, available, self._gpu.read()))

    def _record(self) -> None:
        while True:
            self._sample()
            self.busy_s = time.thread_time()
            if self._ended.wait(PERIOD_S):
                return

    def __enter__(self) -> MemoryRecorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
