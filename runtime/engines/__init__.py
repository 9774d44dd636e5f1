"""Engines: one graph each, on whatever runs it on this machine.

A backend is a module of this folder with `load(path, backend, precision, store) -> Engine`. `load` picks one by name;
or, for "auto", a GPU's if one works, else the fastest on this processor (`trial`).
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

# Each module is imported only when it is wanted. "auto" tries the GPU's in this order.
GPU_BACKENDS = {"tensorrt": ".tensorrt", "tensorrt-rtx": ".tensorrt"}
QUANTIZED = "openvino-int8"
VNNI = "vnni"
CPU_BACKENDS = {
    "openvino": ".openvino",
    "openvino-fp32": ".openvino",
    QUANTIZED: ".openvino",
    VNNI: ".vnni",
    "ncnn": ".ncnn",
    "onnxruntime": ".onnxruntime",
}
BACKENDS = {**GPU_BACKENDS, **CPU_BACKENDS}
AUTO = "auto"
ANYWHERE = "onnxruntime"
LARGE = 64 << 20  # bytes of weights; of fewer their copies take little, and a file of them is not worth its place


class AbsentError(EngineError):
    """What a backend needs is not on this machine: `auto` passes over it without a word."""


class UnsuitedError(EngineError):
    """A backend runs graphs of another kind. `auto` passes over it without a word; named, it leaves the graph to
    `ANYWHERE`."""


class Engine(Protocol):
    """A loaded graph. Called with named float32 arrays, it returns named float32 arrays."""

    name: str  # the backend: "onnxruntime", ...
    precision: str  # of matrix products: "fp32", "fp16", "bf16", "int16", "int8", "dynamic int8"
    device: str  # "cpu", "cuda:0", ...

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class EngineStore:
    """Where TensorRT engines of a bundle's graphs are found, and where what was built or found out here is kept.

    `cache` is the folder, made when it is needed, that engines and outcomes of trials are written to and looked up in;
    where it cannot be written they are built, and tried, each time. `max_batch` is the most that a dimension left to
    the caller will be, `cpu_batch` the same on a processor. `bundle` is the folder of the engines that came with the
    graphs, `records` what its manifest says of them, by name relative to it: those were checked with the bundle.
    `digests` holds sha256 in hex, by file name, of graphs and their weights; what it lacks is hashed. `say` is told, a
    line each, of what takes long or went wrong. `quiet` returns once nothing else of the caller's runs: what is timed
    waits for that. Where not `keeps`, what is written will not be read again.
    """

    cache: Path
    max_batch: int
    cpu_batch: int | None = None  # `max_batch`
    bundle: Path | None = None
    records: Mapping[str, EngineRecord] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    say: Callable[[str], None] = lambda _: None
    quiet: Callable[[], object] = lambda: None
    keeps: bool = True


def package_of(backend: str) -> str:
    """The package that a backend is part of."""
    return backend if backend in GPU_BACKENDS else backend.partition("-")[0]


def check_inputs(path: Path, expected: Mapping[str, tuple[int | None, ...]], inputs: Mapping[str, np.ndarray]) -> None:
    """Raise `EngineError` for inputs of the graph at `path` that are not float32 of those shapes by name, None standing
    for any length."""
    if inputs.keys() != expected.keys():
        raise EngineError(f"{path}: inputs are {sorted(expected)}, not {sorted(inputs)}")
    for name, array in inputs.items():
        shape = expected[name]
        fits = len(shape) == array.ndim and all(
            want in (None, have) for want, have in zip(shape, array.shape, strict=True)
        )
        if array.dtype != np.float32 or not fits:
            raise EngineError(
                f"{path}: input {name!r} is {array.dtype} {list(array.shape)}, expected float32 {list(shape)}"
            )


def check_backend(backend: str) -> None:
    """Raise `EngineError` for a name that is no backend."""
    if backend != AUTO and backend not in BACKENDS:
        raise EngineError(f"backend {backend!r} is not known; one of {', '.join([AUTO, *BACKENDS])}")


def load(path: Path, backend: str = AUTO, precision: str = "fp32", store: EngineStore | None = None) -> Engine:
    """Load the graph at `path`, stored in `precision`, with the named backend, or with the best there is.

    TensorRT's backends pass an inference before they are taken, and need a `store`: building an engine takes minutes on
    a small board. So does choosing among a processor's backends. Without one `auto` is ONNX Runtime.

    Raises `EngineError` where the backend is unknown, not installed, or cannot run the graph here.
    """
    check_backend(backend)
    if backend != AUTO or store is None:
        try:
            return load_one(path, ANYWHERE if backend == AUTO else backend, precision, store)
        except UnsuitedError:
            return load_one(path, ANYWHERE, precision, store)
    for name in GPU_BACKENDS:
        try:
            return load_one(path, name, precision, store)
        except AbsentError:
            continue
        except EngineError as exc:
            store.say(f"{exc}; another backend is used")
    from .trial import fastest

    return fastest(path, precision, store)


def load_one(path: Path, backend: str, precision: str, store: EngineStore | None) -> Engine:
    """Load the graph with that backend. Raises `EngineError` as `load` does."""
    try:
        module = import_module(BACKENDS[backend], __package__)
    except ImportError as exc:
        raise AbsentError(f"{backend} is not installed ({exc}); run: pip install {package_of(backend)}") from exc
    engine: Engine = module.load(path, backend, precision, store)
    return engine
