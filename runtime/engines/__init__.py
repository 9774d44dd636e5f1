"""Engines: one graph each, on whatever runs it on this machine.

A backend is a module of this folder with `load(path, backend, precision, store) -> Engine`. `load` picks one by name,
or tries them in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np

from ...bundle import EngineRecord
from ...errors import EngineError

# In the order that "auto" tries them. Each module is imported only when it is wanted.
BACKENDS = {"tensorrt": ".tensorrt", "tensorrt-rtx": ".tensorrt", "onnxruntime": ".onnxruntime"}
AUTO = "auto"
ANYWHERE = "onnxruntime"


class AbsentError(EngineError):
    """What a backend needs is not on this machine: `auto` passes over it without a word."""


class Engine(Protocol):
    """A loaded graph. Called with named float32 arrays, it returns named float32 arrays."""

    name: str  # the backend: "onnxruntime", ...
    precision: str  # of matrix products: "fp32", "fp16"
    device: str  # "cpu", "cuda:0", ...

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class EngineStore:
    """Where TensorRT engines of a bundle's graphs are found, and where those built on this machine are kept.

    `cache` is the folder, made when it is needed, that engines are written to and looked up in; where it cannot be
    written they are built each time. `max_batch` is the most that a dimension left to the caller will be.
    `bundle` is the folder of the engines that came with the graphs, `records` what its manifest says of them, by name
    relative to it: those were checked with the bundle. `digests` holds sha256 in hex, by file name, of graphs and
    their weights; what it lacks is hashed. `say` is told, a line each, of what takes long or went wrong.
    """

    cache: Path
    max_batch: int
    bundle: Path | None = None
    records: Mapping[str, EngineRecord] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    say: Callable[[str], None] = lambda _: None


def check_backend(backend: str) -> None:
    """Raise `EngineError` for a name that is no backend."""
    if backend != AUTO and backend not in BACKENDS:
        raise EngineError(f"backend {backend!r} is not known; one of {', '.join([AUTO, *BACKENDS])}")


def load(path: Path, backend: str = AUTO, precision: str = "fp32", store: EngineStore | None = None) -> Engine:
    """Load the graph at `path` with the named backend, or with the first that can.

    TensorRT's backends pass an inference before they are taken, and need a `store`: building an engine takes minutes on
    a small board. Without one `auto` is ONNX Runtime.

    Raises `EngineError` where the backend is unknown, not installed, or cannot run the graph here.
    """
    check_backend(backend)
    if backend == AUTO and store is not None:
        for name in BACKENDS:
            try:
                return _load(path, name, precision, store)
            except AbsentError:
                continue
            except EngineError as exc:
                if name == ANYWHERE:
                    raise
                store.say(f"{exc}; another backend is used")
    return _load(path, ANYWHERE if backend == AUTO else backend, precision, store)


def _load(path: Path, backend: str, precision: str, store: EngineStore | None) -> Engine:
    try:
        module = import_module(BACKENDS[backend], __package__)
    except ImportError as exc:
        raise AbsentError(f"{backend} is not installed ({exc}); run: pip install {backend}") from exc
    engine: Engine = module.load(path, backend, precision, store)
    return engine
