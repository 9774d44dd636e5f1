"""CUDA as far as engines and our kernels need it: the one file that touches it from Python.

By ctypes on the driver's own library, which is on every machine that can run an engine, from JetPack 6 (CUDA 12.6) on,
and keeps its versioned functions: cuda-bindings must match the driver's major version, pycuda is compiled on the board.
"""

from __future__ import annotations

import ctypes
import weakref
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

import numpy as np

from ...errors import EngineError
from . import AbsentError

LIBRARY = "libcuda.so.1"

# From cuda.h of CUDA 12.6; unchanged in 13.
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_COMPUTE_CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for what others put on the default stream
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: llama.cpp may allocate in another thread meanwhile

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_uint64),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuModuleLoadData": (POINTER(c_void_p), c_char_p),
    "cuModuleUnload": (c_void_p,),
    "cuModuleGetFunction": (POINTER(c_void_p), c_void_p, c_char_p),
    "cuLaunchKernel": (c_void_p, *[c_uint] * 7, c_void_p, POINTER(c_void_p), c_void_p),
}


class _Driver:
    """The driver's functions, their results checked."""

    def __init__(self, library: Any) -> None:
        self._functions = {}
        for name, arguments in _SIGNATURES.items():
            try:
                function = getattr(library, name)
            except AttributeError:
                raise EngineError(f"the NVIDIA driver has no {name}: it is too old; update it") from None
            function.argtypes, function.restype = arguments, c_int
            self._functions[name] = function

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver. Raises `EngineError` with CUDA's name of what went wrong."""
        result = self._functions[name](*arguments)
        if result:
            text = c_char_p()
            self._functions["cuGetErrorName"](result, byref(text))
            reason = text.value.decode() if text.value else f"error {result}"
            raise (AbsentError if result == _NO_DEVICE else EngineError)(f"CUDA: {name} failed with {reason}")

    def free(self, context: c_void_p, name: str, *handle: Any) -> None:
        """Give something back in its context; errors are of a driver that is gone already."""
        self._functions["cuCtxSetCurrent"](context)
        self._functions[name](*handle)


def _load_library() -> Any:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as exc:
        raise AbsentError(f"no NVIDIA driver ({exc})") from exc


class Device:
    """The first GPU; its primary context, which TensorRT uses too, is held until all that was made here is freed.

    `name` is the driver's, such as "Orin"; `compute_capability` such as "8.7".

    Raises `AbsentError` where there is none, `EngineError` where the driver does not answer.
    """

    def __init__(self) -> None:
        self._driver = _Driver(_load_library())
        call = self._driver.call
        call("cuInit", 0)
        ordinal = c_int()
        call("cuDeviceGet", byref(ordinal), 0)
        text = ctypes.create_string_buffer(256)
        call("cuDeviceGetName", text, len(text), ordinal)
        self.name = text.value.decode(errors="replace")
        numbers = (c_int(), c_int())
        for number, attribute in zip(numbers, _COMPUTE_CAPABILITY, strict=True):
            call("cuDeviceGetAttribute", byref(number), attribute, ordinal)
        self.compute_capability = ".".join(str(number.value) for number in numbers)
        self._context = c_void_p()
        call("cuDevicePrimaryCtxRetain", byref(self._context), ordinal)
        weakref.finalize(self, self._driver.free, self._context, "cuDevicePrimaryCtxRelease_v2", ordinal)

    def make_current(self) -> None:
        """Let what the calling thread does with CUDA from now on be on this device."""
        self._driver.call("cuCtxSetCurrent", self._context)

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver in this device's context; see `_Driver.call`."""
        self.make_current()
        self._driver.call(name, *arguments)

    def free_with(self, owner: object, name: str, handle: Any) -> None:
        """Free `handle` by the driver's function `name` when `owner` goes; the device stays until then."""
        weakref.finalize(owner, Device._free, self, name, handle)

    def _free(self, name: str, handle: Any) -> None:
        self._driver.free(self._context, name, handle)


class DeviceMemory:
    """Memory of the GPU, freed with the object; `address` is what TensorRT is given."""

    def __init__(self, device: Device, size: int) -> None:
        address = c_uint64()
        device.call("cuMemAlloc_v2", byref(address), size)
        device.free_with(self, "cuMemFree_v2", address)
        self.address = address.value


class PinnedArray:
    """A float32 array in page-locked memory, which the GPU copies from and to while the processor goes on.

    `array` is valid as long as this object is.
    """

    def __init__(self, device: Device, shape: tuple[int, ...]) -> None:
        address, count = c_void_p(), int(np.prod(shape))
        device.call("cuMemHostAlloc", byref(address), count * 4, 0)
        device.free_with(self, "cuMemFreeHost", address)
        self.address = address.value
        floats = (ctypes.c_float * count).from_address(address.value or 0)
        self.array = np.ctypeslib.as_array(floats).reshape(shape)


class Stream:
    """Work in order on the GPU; `handle` is what TensorRT is given."""

    def __init__(self, device: Device) -> None:
        self._device, self._stream = device, c_void_p()
        device.call("cuStreamCreate", byref(self._stream), _NON_BLOCKING)
        device.free_with(self, "cuStreamDestroy_v2", self._stream)
        self.handle = int(self._stream.value or 0)

    def copy_in(self, target: DeviceMemory, source: PinnedArray, size: int) -> None:
        """Copy `size` bytes to the GPU, later."""
        self._device.call("cuMemcpyHtoDAsync_v2", target.address, source.address, size, self._stream)

    def copy_out(self, target: PinnedArray, source: DeviceMemory, size: int) -> None:
        """Copy `size` bytes from the GPU, later."""
        self._device.call("cuMemcpyDtoHAsync_v2", target.address, source.address, size, self._stream)

    def synchronize(self) -> None:
        """Wait until all work is done. Raises `EngineError` where any of it failed."""
        self._device.call("cuStreamSynchronize", self._stream)

    def begin_capture(self) -> None:
        """From now on record work instead of doing it."""
        self._device.call("cuStreamBeginCapture_v2", self._stream, _THREAD_LOCAL)

    def end_capture(self) -> Graph:
        """What was recorded. Raises `EngineError` where something cannot be; the stream then works as before."""
        graph = c_void_p()
        self._device.call("cuStreamEndCapture", self._stream, byref(graph))
        return Graph(self._device, graph)

    def run(self, kernel: Kernel, blocks: tuple[int, int], threads: tuple[int, int], job: ctypes.Structure) -> None:
        """Run a kernel that takes one structure over a grid of blocks, later; `job` is copied now."""
        arguments = (c_void_p * 1)(ctypes.addressof(job))
        self._device.call("cuLaunchKernel", kernel.handle, *blocks, 1, *threads, 1, 0, self._stream, arguments, None)

    def launch(self, graph: Graph) -> None:
        """Do what was recorded, later."""
        self._device.call("cuGraphLaunch", graph.executable, self._stream)


class Graph:
    """Recorded work, which the GPU starts as one piece."""

    def __init__(self, device: Device, graph: c_void_p) -> None:
        self.executable = c_void_p()
        try:
            device.call("cuGraphInstantiateWithFlags", byref(self.executable), graph, 0)
        finally:
            device.call("cuGraphDestroy", graph)
        device.free_with(self, "cuGraphExecDestroy", self.executable)


class Module:
    """Compiled kernels in the GPU, unloaded with the object. `cubin` is what nvcc wrote for this GPU.

    Raises `EngineError` where the driver refuses it: it is of another GPU, or of a newer CUDA than the driver.
    """

    def __init__(self, device: Device, cubin: bytes) -> None:
        self._device, self._handle = device, c_void_p()
        device.call("cuModuleLoadData", byref(self._handle), cubin)
        device.free_with(self, "cuModuleUnload", self._handle)

    def kernel(self, name: str) -> Kernel:
        """The kernel of that name. Raises `EngineError` where there is none."""
        handle = c_void_p()
        self._device.call("cuModuleGetFunction", byref(handle), self._handle, name.encode())
        return Kernel(self, handle)


class Kernel:
    """A function that runs on the GPU; keeps its module loaded."""

    def __init__(self, module: Module, handle: c_void_p) -> None:
        self._module, self.handle = module, handle
