"""Which sensor this machine has."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from .ina3221 import Ina3221Reader
from .nvml import Nvml, NvmlLibrary, NvmlReader
from .rapl import RaplReader
from .reading import NoSensorError, Reader
from .tegrastats import PROGRAM, TegrastatsReader

PERIOD_S = 0.1


def find_reader(
    root: Path = Path("/"), period_s: float = PERIOD_S, nvml: Callable[[], Nvml] | None = None
) -> Reader | None:
    """The first that can be read now: INA3221 files, tegrastats, NVML, RAPL; None where there is none.

    `root` holds `sys` and `usr`. NVML is a library of this machine and not of a tree: under another root it is asked
    only through `nvml`. `period_s` is how often tegrastats is told to speak. Close the reader after use.
    """
    for make in _makers(root, period_s, nvml):
        try:
            return make()
        except NoSensorError:
            continue
    return None


def why_none(root: Path = Path("/"), nvml: Callable[[], Nvml] | None = None) -> str:
    """Why `find_reader` gives None: what each of the four says, in one line."""
    reasons = []
    for make in _makers(root, PERIOD_S, nvml):
        try:
            make().close()
        except NoSensorError as exc:
            reasons.append(str(exc))
    return "; ".join(reasons)


def _makers(root: Path, period_s: float, nvml: Callable[[], Nvml] | None) -> Iterator[Callable[[], Reader]]:
    yield lambda: Ina3221Reader(root)
    yield lambda: _tegrastats(root / PROGRAM, period_s)
    if nvml is not None or root == Path("/"):
        yield lambda: NvmlReader((nvml or NvmlLibrary)())
    yield lambda: RaplReader(root)


def _tegrastats(program: Path, period_s: float) -> Reader:
    if not os.access(program, os.X_OK):
        raise NoSensorError("no tegrastats")
    return TegrastatsReader.start(program, period_s)
