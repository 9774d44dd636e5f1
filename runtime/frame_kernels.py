"""Frames that are decoded to GPU memory: preprocessing and motion there, by the kernels of `svrt.kernels`.

What `describe` decodes lies in ordinary memory and goes through the CPU twins; this is for frames that a Jetson's or
another decoder leaves on the GPU. Not run on a Jetson yet: tests execute the same sources on a processor, and passed on
an NVIDIA H200.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int32, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..kernels.nvcc import compile_kernels
from ..kernels.preprocess import Normalisation
from ..kernels.views import SPAN, View
from .engines.cuda import Device, DeviceMemory, Module, PinnedArray, Stream

THREADS = (32, 8)  # of a block: a warp writes 32 neighbours of a row
MAX_LEVEL = 8  # sums of 4^level bytes of luma stay exact in float32
_PLAIN = Normalisation("bgr", 1.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass(frozen=True)
class GpuFrame:
    """A decoded frame in GPU memory: addresses of its rows, `pitch` bytes apart.

    "bgr" is uint8 [H, W, 3]. "nv12" is luma uint8 [H, W], and chroma uint8 [H/2, W/2, 2] of its own address, BT.601 in
    studio range; its sides are even.
    """

    layout: Literal["bgr", "nv12"]
    width: int
    height: int
    pixels: int
    pitch: int
    chroma: int = 0
    chroma_pitch: int = 0

    def __post_init__(self) -> None:
        if self.layout == "nv12" and (self.width % 2 or self.height % 2 or not self.chroma):
            raise ValueError("an NV12 frame has even sides and chroma")

    def pack(self) -> ctypes.Structure:
        """As the kernels take it."""
        if self.layout == "bgr":
            return _Bgr(self.pixels, self.pitch)
        return _Nv12(self.pixels, self.chroma, self.pitch, self.chroma_pitch)


class _Bgr(ctypes.Structure):
    _fields_ = (("pixels", c_void_p), ("pitch", c_int32))


class _Nv12(ctypes.Structure):
    _fields_ = (("luma", c_void_p), ("chroma", c_void_p), ("luma_pitch", c_int32), ("chroma_pitch", c_int32))


class _Normal(ctypes.Structure):
    _fields_ = (("gain", c_float * 3), ("offset", c_float * 3))

    @classmethod
    def of(cls, norm: Normalisation) -> _Normal:
        gains = [1.0 / (norm.scale * std) for std in norm.std]
        offsets = [mean / std for mean, std in zip(norm.mean, norm.std, strict=True)]
        return cls((c_float * 3)(*gains), (c_float * 3)(*offsets))


def _job(name: str, frame: type[ctypes.Structure], pointers: str, numbers: str) -> type[ctypes.Structure]:
    """A structure of resize.cu or haar.cu: a frame, pointers, 32-bit numbers, the normalisation."""
    fields = [("frame", frame), *((field, c_void_p) for field in pointers.split())]
    fields += [*((field, c_int32) for field in numbers.split()), ("normal", _Normal)]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


RESIZE_JOBS = {
    layout: _job("Resize", frame, "columns rows tensor", "width height filter rgb")
    for layout, frame in (("bgr", _Bgr), ("nv12", _Nv12))
}
MOTION_JOBS = {
    layout: _job("Motion", frame, "previous band tensor", "width height level columns rows")
    for layout, frame in (("bgr", _Bgr), ("nv12", _Nv12))
}


class GpuView:
    """A view's tables in GPU memory: made once for all frames of a size."""

    def __init__(self, device: Device, stream: Stream, view: View) -> None:
        self.filter, self.size = view.filter, len(view.columns)
        words = SPAN.itemsize // 4
        host = PinnedArray(device, (2 * self.size * words,))
        host.array.view(SPAN)[:] = np.concatenate([view.columns, view.rows])
        self._memory = DeviceMemory(device, host.array.nbytes)
        stream.copy_in(self._memory, host, host.array.nbytes)
        stream.synchronize()
        self.columns = self._memory.address
        self.rows = self.columns + self.size * SPAN.itemsize


class FrameKernels:
    """The kernels on one GPU; all work goes to a stream and is done when that is synchronized.

    `cache` is where their cubins are kept; nvcc makes them on first use. Raises `EngineError` where it cannot.
    """

    def __init__(self, device: Device, cache: Path) -> None:
        cubins = compile_kernels(cache, device.compute_capability)
        self._modules = {name: Module(device, path.read_bytes()) for name, path in cubins.items()}

    def resize(
        self, frame: GpuFrame, view: GpuView, norm: Normalisation, tensor: int, stream: Stream, *, half: bool
    ) -> None:
        """Write the view of a frame, normalised, to address `tensor`: [3, size, size] of half or float32.

        The values of `normalise(fit_square(...))`.
        """
        numbers = (view.size, view.size, view.filter, int(norm.channels == "rgb"))
        pointers = (view.columns, view.rows, tensor)
        job = RESIZE_JOBS[frame.layout](frame.pack(), *pointers, *numbers, _Normal.of(norm))
        self._run("resize", f"resize_{frame.layout}", half, (view.size, view.size), job, stream)

    def motion(
        self,
        frame: GpuFrame,
        level: int,
        previous: int,
        band: int,
        tensor: int,
        stream: Stream,
        *,
        half: bool,
        norm: Normalisation = _PLAIN,
    ) -> None:
        """Write the Haar LL of a frame's luma to `band`, and the motion since LL `previous` to `tensor`.

        Both bands are addresses of float32 [ceil(H / 2^level), ceil(W / 2^level)]; `previous` is 0 for the first frame.
        `tensor` is [3, rows, columns] of half or float32: the values of `haar.motion`, thrice, normalised by `norm`.
        """
        if not 1 <= level <= MAX_LEVEL:
            raise ValueError(f"wavelet level must be 1 to {MAX_LEVEL}, got {level}")
        columns, rows = -(-frame.width >> level), -(-frame.height >> level)
        numbers = (frame.width, frame.height, level, columns, rows)
        job = MOTION_JOBS[frame.layout](frame.pack(), previous or None, band, tensor, *numbers, _Normal.of(norm))
        self._run("haar", f"motion_{frame.layout}", half, (columns, rows), job, stream)

    def _run(
        self, module: str, kernel: str, half: bool, extent: tuple[int, int], job: ctypes.Structure, stream: Stream
    ) -> None:
        function = self._modules[module].kernel(f"{kernel}_{'half' if half else 'float'}")
        blocks = (-(-extent[0] // THREADS[0]), -(-extent[1] // THREADS[1]))
        stream.run(function, blocks, THREADS, job)
