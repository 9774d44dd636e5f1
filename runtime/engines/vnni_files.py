"""What svrt's own kernels keep in the engine cache: themselves, compiled, and weights as they read them."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import numpy as np

from ...errors import EngineError
from ...kernels.vnni.compiler import NEEDED, compile_kernels
from ..processors import processor_flags, usable_processors
from . import VNNI, AbsentError, EngineStore
from .files import digest_of, locked, write_whole

Kernels = TypeVar("Kernels")
LOCK = "weights.lock"


def load_kernels(kind: Callable[[Path, int], Kernels], store: EngineStore | None) -> Kernels:
    """The kernels, from a compiled library in the store's cache; made each time where that cannot be written.

    Raises `AbsentError` on another processor, `EngineError` where they cannot be compiled.
    """
    if not processor_flags() >= NEEDED:
        raise AbsentError(f"{VNNI} needs a processor with AVX-512 VNNI")
    if store is not None:
        try:
            with locked(store, "compiles kernels", LOCK):
                return kind(compile_kernels(store.cache), usable_processors())
        except OSError as exc:
            store.say(f"{store.cache}: kernels cannot be kept there ({exc.strerror}); they are compiled each time")
    try:
        with tempfile.TemporaryDirectory() as folder:
            return kind(compile_kernels(Path(folder)), usable_processors())
    except OSError as exc:
        raise EngineError(f"kernels cannot be compiled: {exc.filename or ''}: {exc.strerror}") from exc


def arranged(
    path: Path, kind: str, size: int, parts: Callable[[], Iterable[np.ndarray]], store: EngineStore | None
) -> np.ndarray:
    """`parts` one after another, `size` bytes, uint8: the weights of the graph at `path`, mapped from a file of that
    kind in the store's cache, which is made where it is not there. In memory where it cannot be written, which
    `store.say` is told, or without a store.

    `kind` names what the file holds, and its layout.
    """
    if store is not None:
        key = hashlib.sha256(f"{digest_of(path, store.digests)} {kind}".encode()).hexdigest()
        file = store.cache / f"{path.stem}-{key[:12]}.{VNNI}"
        try:
            with locked(store, "arranges weights", LOCK):
                if not file.is_file() or file.stat().st_size != size:
                    store.say(f"arranging the weights of {path.name} for {VNNI} (once)")
                    write_whole(file, (part.reshape(-1).view(np.uint8).data for part in parts()))
            return np.memmap(file, np.uint8, "r")
        except OSError as exc:
            store.say(f"{file}: cannot be kept ({exc.strerror}); weights are arranged each time")
    return np.concatenate([part.reshape(-1).view(np.uint8) for part in parts()])


Layout = dict[str, tuple[type, tuple[int, ...]]]  # arrays one after another: types and shapes by name


def bytes_of(layout: Layout) -> int:
    return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for dtype, shape in layout.values())


def views(data: np.ndarray, layout: Layout) -> dict[str, np.ndarray]:
    """The arrays that lie in `data`, uint8."""
    found: dict[str, np.ndarray] = {}
    at = 0
    for name, (dtype, shape) in layout.items():
        size = bytes_of({name: (dtype, shape)})
        found[name] = data[at : at + size].view(dtype).reshape(shape)
        at += size
    return found
