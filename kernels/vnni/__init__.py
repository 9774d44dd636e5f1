"""Kernels of svrt's own for processors with AVX-512 VNNI, which adds up products of integers: C, compiled on the
machine that it runs on (`compiler`).

`transformer` has the layers of a vision transformer, in int8; `convolution` those of VGG-16, in 16 bits.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

from ...errors import EngineError

COLUMNS = 64  # outputs of a panel of weights, as in vnni.h


def open_library(path: Path, *names: str) -> list[ctypes._NamedFuncPointer]:
    """Functions of the compiled library at `path`. Raises `EngineError` where it does not load."""
    try:
        library = ctypes.CDLL(str(path))
        return [getattr(library, name) for name in names]
    except (OSError, AttributeError) as exc:
        raise EngineError(f"{path}: cannot be loaded ({exc}); remove it to have it compiled again") from exc
