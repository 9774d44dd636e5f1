"""Engines: one graph each, on whatever runs it on this machine.

A backend is a module of this folder with `load(path, precision) -> Engine`. `load` picks one by name, or tries them in
order.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np

from ...errors import EngineError

# In the order that "auto" tries them. Each is imported only when it is wanted.
BACKENDS = {"onnxruntime": ".onnxruntime"}
AUTO = "auto"


class Engine(Protocol):
    """A loaded graph. Called with named float32 arrays, it returns named float32 arrays."""

    name: str  # the backend: "onnxruntime", ...
    precision: str  # of matrix products: "fp32", "fp16"
    device: str  # "cpu", "cuda:0", ...

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]: ...


def check_backend(backend: str) -> None:
    """Raise `EngineError` for a name that is no backend."""
    if backend != AUTO and backend not in BACKENDS:
        raise EngineError(f"backend {backend!r} is not known; one of {', '.join([AUTO, *BACKENDS])}")


def load(path: Path, backend: str = AUTO, precision: str = "fp32") -> Engine:
    """Load the graph at `path` with the named backend, or with the first that can.

    Raises `EngineError` where the backend is unknown, not installed, or cannot load the graph.
    """
    check_backend(backend)
    failures = []
    for name in BACKENDS if backend == AUTO else [backend]:
        try:
            engine: Engine = import_module(BACKENDS[name], __package__).load(path, precision)
            return engine
        except ImportError as exc:
            failures.append(f"{name} is not installed ({exc})")
        except EngineError as exc:
            failures.append(str(exc))
    raise EngineError("; ".join(failures))
