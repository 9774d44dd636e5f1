"""Devices by their published figures: memory, bandwidth and dense arithmetic rates of NVIDIA's Jetson modules.

Data sheets give memory, bandwidth, clocks, and INT8 or FP4 operations with structured sparsity, which these networks do
not have. Dense FP16 is therefore computed, and reproduces what NVIDIA publishes where it publishes it:

- Orin (GA10B): `SM_FLOPS_ORIN` x SMs x clock. 8 SMs at 1,020 MHz make 16.7 TFLOP/s FP16, 33 dense and 67 sparse INT8
  TOPS, the three figures of the Orin Nano Super; 16 SMs at 1.3 GHz make 170 sparse INT8 TOPS, those of the AGX Orin's
  GPU. Totals that NVIDIA gives for NX and AGX contain the DLAs (40 to 105 TOPS), which are not used here.
- Thor (Blackwell): an eighth of the sparse FP4 figure (2 for sparsity, 2 each from FP4 to FP8 and to FP16).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import SvrtError

GIB = 2**30

SM_FLOPS_ORIN = 2048  # dense FP16 operations a clock and SM: 4 tensor cores x 256 multiply-adds
INT8_OVER_FP16 = 2  # tensor cores of both generations
# Float32 runs on the 128 lanes of an SM, 256 operations a clock: TF32 keeps 10 bits, and the engines are built without.
ORIN_FP16_OVER_FP32 = SM_FLOPS_ORIN // 256
THOR_FP16_OVER_FP32 = 32  # 20 SMs at 1,575 MHz make the T5000's FP16 figure at 8,192 operations a clock and SM

# Linux sees less than is soldered on: the rest is carved out for firmware, video and display. MemTotal in MiB as
# tegrastats printed it; other modules are taken to keep the least share of these.
SEEN_MIB = {"orin-nano-8gb": 7607, "orin-nx-16gb": 15656, "agx-orin-64gb": 62780}
LEAST_SHARE_SEEN = 7607 / 8192

PROCESS = 130_000_000  # bytes: Python and the runtime's libraries, nothing loaded; resident on x86-64, CPU builds
GPU_PROCESS = 600_000_000  # CUDA context, TensorRT and cuBLAS: assumed, not measured


@dataclass(frozen=True)
class Rates:
    """The most a device can do: dense operations a second by type of operand (a multiply-add is two), and bytes."""

    fp32: float
    fp16: float
    int8: float
    bandwidth: float


@dataclass(frozen=True)
class Device:
    """One device in one power mode. `memory` is what Linux can give out, in bytes, shared by CPU and GPU.

    `process` is what the runtime takes with nothing loaded. `basis` says where each figure is from. `gpu` tells whether
    a GPU runs the graphs and the decoder.
    """

    name: str
    mode: str
    memory: int
    rates: Rates
    basis: list[str]
    process: int = PROCESS + GPU_PROCESS
    gpu: bool = True


def _usable(module: str, gib: int) -> tuple[int, str]:
    """Bytes that Linux sees of `gib` GiB, and how that is known."""
    seen = SEEN_MIB.get(module)
    if seen is not None:
        return seen << 20, f"memory: {gib} GiB published; {seen} MiB is the MemTotal tegrastats showed on this module"
    usable = int(gib * GIB * LEAST_SHARE_SEEN)
    return usable, (
        f"memory: {gib} GiB published; assumed that Linux sees {LEAST_SHARE_SEEN:.1%}, the least share seen on an Orin"
    )


def _rates(fp16: float, over_fp32: int, bandwidth_gbs: float) -> Rates:
    return Rates(fp16 / over_fp32, fp16, fp16 * INT8_OVER_FP16, bandwidth_gbs * 1e9)


_PROCESS = (
    f"memory: {PROCESS / 1e6:.0f} MB for Python and libraries (as on x86-64), {GPU_PROCESS / 1e6:.0f} MB for CUDA and "
    "TensorRT (assumed, not measured); all of it shared by CPU and GPU"
)


def _orin(module: str, gib: int, sms: int, mhz: float, gbs: float, source: str, *, super_mode: bool = False) -> Device:
    memory, seen = _usable(module, gib)
    fp16 = SM_FLOPS_ORIN * sms * mhz * 1e6
    return Device(
        name=f"{module}-super" if super_mode else module,
        mode="MAXN_SUPER (JetPack 6.2)" if super_mode else "MAXN, as first published",
        memory=memory,
        rates=_rates(fp16, ORIN_FP16_OVER_FP32, gbs),
        basis=[
            seen,
            _PROCESS,
            f"bandwidth: {gbs:g} GB/s; {source}",
            f"FP16: {sms} SMs x {SM_FLOPS_ORIN} FLOP a clock (dense) x {mhz:g} MHz = {fp16 / 1e12:.1f} TFLOP/s; "
            f"INT8 twice, FP32 an eighth of it; {source}",
        ],
    )


def _thor(module: str, gib: int, fp4_sparse_tflops: float, source: str) -> Device:
    memory, seen = _usable(module, gib)
    fp16 = fp4_sparse_tflops * 1e12 / 8
    return Device(
        name=module,
        mode="MAXN",
        memory=memory,
        rates=_rates(fp16, THOR_FP16_OVER_FP32, 273),
        basis=[
            seen,
            _PROCESS,
            f"bandwidth: 273 GB/s; {source}",
            f"FP16: {fp4_sparse_tflops:g} TFLOP/s FP4 with sparsity / 8 = {fp16 / 1e12:.1f} TFLOP/s dense; "
            f"INT8 taken as twice, FP32 as a thirty-second of it; {source}",
        ],
    )


_NANO = "Jetson Orin Nano Series data sheet"
_NX = "Jetson Orin NX Series data sheet DS-10712"
_AGX = "Jetson AGX Orin Series data sheet and Technical Brief v1.2"
_SUPER = "NVIDIA technical blog on Super Mode, JetPack 6.2, January 2025"

DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        _orin("orin-nano-4gb", 4, 4, 625, 34, _NANO),
        _orin("orin-nano-4gb", 4, 4, 1020, 51, _SUPER, super_mode=True),
        _orin("orin-nano-8gb", 8, 8, 625, 68, _NANO),
        _orin("orin-nano-8gb", 8, 8, 1020, 102, _SUPER, super_mode=True),
        _orin("orin-nx-8gb", 8, 8, 765, 102.4, _NX),
        _orin("orin-nx-8gb", 8, 8, 1173, 102.4, _SUPER, super_mode=True),
        _orin("orin-nx-16gb", 16, 8, 918, 102.4, _NX),
        _orin("orin-nx-16gb", 16, 8, 1173, 102.4, _SUPER, super_mode=True),
        _orin("agx-orin-32gb", 32, 14, 930, 204.8, _AGX),
        _orin("agx-orin-64gb", 64, 16, 1300, 204.8, _AGX),
        _thor("thor-t4000", 64, 1200, "NVIDIA technical blog on Jetson T4000 and JetPack 7.1"),
        _thor("thor-t5000", 128, 2070, "NVIDIA technical blog introducing Jetson Thor, August 2025"),
    )
}
THIS = "this"


def find(name: str) -> Device:
    """The device of that name; raises `SvrtError`, listing the names, where there is none."""
    if name not in DEVICES:
        raise SvrtError(f"device {name!r} is not known; one of {', '.join([*DEVICES, THIS])}")
    return DEVICES[name]
