"""Which rails of a Jetson make its total."""

from __future__ import annotations

from collections.abc import Mapping

# The first line whose rails are all there is the total. Orin Nano and NX: VDD_IN is the module. AGX Thor: VIN is the
# board. AGX Orin measures neither, so its total is a sum of all that it measures; without the second chip (address
# 0x41), or without Thor's input monitor, the sum is shorter and its name says so.
TOTALS = (
    ("VDD_IN",),
    ("VIN",),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
)
MOST_WATTS = 1000.0  # eight times the largest module: above it a register was misread


def total_of(names: Mapping[str, object]) -> tuple[str, ...] | None:
    """The rails whose sum is the board's total, among those named; None where no such set is whole."""
    return next((rails for rails in TOTALS if all(name in names for name in rails)), None)


def add_up(parts: Mapping[str, float], rails: tuple[str, ...]) -> float | None:
    """Watts of the total; None where one of its rails is missing, or where the sum cannot be a running board's."""
    if any(name not in parts for name in rails):
        return None
    watts = sum(parts[name] for name in rails)
    return watts if 0 < watts <= MOST_WATTS else None
