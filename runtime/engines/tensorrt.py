"""TensorRT on the GPU: finds or builds the engine of a graph, and runs it.

An engine is taken from the bundle if its key is that of this machine, else from the user's cache, else it is built and
kept there. One that does not load or fails its first inference is built again: engines go stale with an update of
TensorRT or of the driver, and are copied between boards by hand.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import EngineError
from . import AbsentError, EngineStore
from .cuda import Device, DeviceMemory, Graph, PinnedArray, Stream
from .files import digest_of, locked, write_whole
from .tensorrt_build import Options, Target, build, engine_name, find_module, logger


@dataclass(frozen=True)
class _Tensor:
    """An input or output: its shape at the largest batch, and where it lies on either side. `free`: batches vary."""

    shape: tuple[int, ...]
    free: bool
    host: PinnedArray
    memory: DeviceMemory


class TensorRtEngine:
    """A TensorRT engine in memory; see `svrt.runtime.engines.Engine`.

    `plan` are the engine's bytes; they are not needed afterwards. An engine without free dimensions is recorded as a
    CUDA graph at its second run: the encoder is some 600 short kernels, and starting each costs a board's processor
    more than the GPU takes for it. VGG-16's are few and long, and its batch varies.

    Raises `EngineError` where the engine is damaged, of another version, or for another GPU.
    """

    device = "cuda:0"

    def __init__(self, trt: Any, device: Device, path: Path, plan: Any, name: str, precision: str) -> None:
        self.path, self.name, self.precision = path, name, precision
        self._device, self._log = device, logger(trt)
        self._log.errors.clear()
        device.make_current()
        engine = trt.Runtime(self._log).deserialize_cuda_engine(plan)
        self._context: Any = engine.create_execution_context() if engine is not None else None
        if self._context is None:
            raise EngineError(f"{path}: {name} cannot load its engine: {self._log.reason()}")
        self._stream = Stream(device)
        self._inputs: dict[str, _Tensor] = {}
        self._outputs: dict[str, _Tensor] = {}
        self._graph: Graph | None = None
        self._runs_until_recorded = 1
        self._bind(trt, engine)

    def _bind(self, trt: Any, engine: Any) -> None:
        """Give every tensor memory for its largest shape; inputs first, as they decide the outputs' shapes."""
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        for name in inputs:
            shape = tuple(engine.get_tensor_shape(name))
            if -1 in shape:
                shape = tuple(engine.get_tensor_profile_shape(name, 0)[2])  # least, best, largest
            self._context.set_input_shape(name, shape)
        for name in [*inputs, *(name for name in names if name not in inputs)]:
            if engine.get_tensor_dtype(name) != trt.DataType.FLOAT:
                raise EngineError(f"{self.path}: {name!r} is not float32; export the bundle again")
            shape = tuple(self._context.get_tensor_shape(name))
            host = PinnedArray(self._device, shape)
            memory = DeviceMemory(self._device, host.array.nbytes)
            self._context.set_tensor_address(name, memory.address)
            free = -1 in tuple(engine.get_tensor_shape(name))
            (self._inputs if name in inputs else self._outputs)[name] = _Tensor(shape, free, host, memory)

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the engine once. Raises `EngineError` where an input does not fit, or the GPU fails."""
        if inputs.keys() != self._inputs.keys():
            raise EngineError(f"{self.path}: inputs are {sorted(self._inputs)}, not {sorted(inputs)}")
        for name, array in inputs.items():
            self._check(name, array)
            self._inputs[name].host.array[: len(array)] = array
            if self._inputs[name].free:
                self._context.set_input_shape(name, array.shape)
        shapes = {name: tuple(self._context.get_tensor_shape(name)) for name in self._outputs}
        if self._graph is None and self._recordable():
            self._graph = self._record(shapes)
        if self._graph is not None:
            self._stream.launch(self._graph)
        else:
            self._enqueue(shapes)
        self._stream.synchronize()
        self._runs_until_recorded -= 1
        return {name: self._outputs[name].host.array[: shape[0]].copy() for name, shape in shapes.items()}

    def _check(self, name: str, array: np.ndarray) -> None:
        tensor = self._inputs[name]
        fits = 1 <= len(array) <= tensor.shape[0] if tensor.free else len(array) == tensor.shape[0]
        if array.dtype != np.float32 or array.shape[1:] != tensor.shape[1:] or not fits:
            most = f"up to {list(tensor.shape)}" if tensor.free else str(list(tensor.shape))
            raise EngineError(
                f"{self.path}: input {name!r} is {array.dtype} {list(array.shape)}, expected float32 {most}"
            )

    def _enqueue(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Put the copies and the network on the stream."""
        sizes = {name: 4 * int(np.prod(self._context.get_tensor_shape(name))) for name in self._inputs}
        for name, tensor in self._inputs.items():
            self._stream.copy_in(tensor.memory, tensor.host, sizes[name])
        self._log.errors.clear()
        if not self._context.execute_async_v3(self._stream.handle):
            raise EngineError(f"{self.path}: {self.name} cannot run it: {self._log.reason()}")
        for name, shape in shapes.items():
            self._stream.copy_out(self._outputs[name].host, self._outputs[name].memory, 4 * int(np.prod(shape)))

    def _recordable(self) -> bool:
        """Whether to record now: once, after a run in which TensorRT allocates and, for RTX, compiles."""
        if self._runs_until_recorded != 0 or any(tensor.free for tensor in self._inputs.values()):
            return False
        asked = getattr(self._context, "is_stream_capturable", None)  # of TensorRT for RTX, which may compile later too
        return asked is None or bool(asked(self._stream.handle))

    def _record(self, shapes: dict[str, tuple[int, ...]]) -> Graph | None:
        """The run as a CUDA graph; None where the network does something that cannot be recorded."""
        self._stream.begin_capture()
        enqueued = False
        try:
            self._enqueue(shapes)
            enqueued = True
        except EngineError:
            pass
        try:
            graph = self._stream.end_capture()  # also after a failure: it ends the recording
        except EngineError:
            return None
        return graph if enqueued else None

    def check(self) -> None:
        """Run it on zeros, at the largest batch. Raises `EngineError` where it fails or gives what is no number."""
        outputs = self({name: np.zeros(tensor.shape, np.float32) for name, tensor in self._inputs.items()})
        for name, values in outputs.items():
            if not np.isfinite(values).all():
                raise EngineError(f"{self.path}: {self.name} gives values in {name!r} that are not finite")


class _Finder:
    """Finds the engine of one graph for this machine, or builds it."""

    def __init__(self, path: Path, backend: str, precision: str, store: EngineStore) -> None:
        self.path, self.backend, self.precision, self.store = path, backend, precision, store
        self.device = Device()
        self.trt = find_module(backend)
        self.target = Target.of(backend, self.trt, self.device)
        self.options = Options(store.max_batch)
        self.key = self.target.key(digest_of(path, store.digests), self.options)
        self.cached = store.cache / engine_name(path, self.key)

    def engine(self) -> TensorRtEngine:
        found = self._try(self._shipped()) or self._try(self._kept())
        if found is not None:
            return found
        with locked(self.store, "builds an engine"):
            return self._try(self._kept()) or self._build()  # another process may have been first

    def _shipped(self) -> Path | None:
        """The engine that came with the bundle, if it is for this machine."""
        for name, record in self.store.records.items():
            if record.graph == self.path.name and record.key == self.key and self.store.bundle is not None:
                return self.store.bundle / name
        return None

    def _kept(self) -> Path | None:
        """The engine in the cache, if it is all there and is the one that was written."""
        try:
            note = json.loads(_note(self.cached).read_bytes())
            if (note["key"], note["sha256"]) == (self.key, _sha256(self.cached)):
                return self.cached
        except (FileNotFoundError, NotADirectoryError):
            return None  # none yet, or half of a pair when the power went
        except (OSError, ValueError, KeyError, TypeError):
            pass
        self.store.say(f"{self.cached}: is damaged; it is built again")
        self._forget()
        return None

    def _forget(self) -> None:
        """Let the engine in the cache count as none."""
        with suppress(OSError):
            _note(self.cached).unlink(missing_ok=True)

    def _try(self, file: Path | None) -> TensorRtEngine | None:
        if file is None:
            return None
        try:
            with _mapped(file) as plan:
                return self._load(plan)
        except (EngineError, OSError, ValueError) as exc:  # ValueError: an empty file cannot be mapped
            self.store.say(f"{file}: cannot be used ({exc}); it is built again")
            if file == self.cached:
                self._forget()
            return None

    def _load(self, plan: Any) -> TensorRtEngine:
        engine = TensorRtEngine(self.trt, self.device, self.path, plan, self.backend, self.precision)
        engine.check()
        return engine

    def _build(self) -> TensorRtEngine:
        say, name = self.store.say, self.path.name
        say(f"building the {self.backend} engine of {name} for {self.device.name} (once; minutes on a small board)")
        for record in self.store.records.values():
            if (record.graph, record.backend) == (name, self.backend) and record.key != self.key:
                say(f"the bundle's is of version {record.version} for {record.device or record.compute_capability}")
        quarters = iter((25, 50, 75, 101))
        upcoming = next(quarters)

        def progress(done: int, total: int) -> None:
            nonlocal upcoming
            while 100 * done >= upcoming * total:
                say(f"building the engine of {name}: {upcoming} %")
                upcoming = next(quarters)

        timings = self.store.cache / f"timings-{self.target.version}-{self.target.compute_capability}.cache"
        plan = build(self.trt, self.path, self.target, self.options, progress, timings)
        engine = self._load(plan)
        try:
            write_whole(self.cached, plan)
            note = {"key": self.key, "sha256": hashlib.sha256(plan).hexdigest(), "graph": str(self.path)}
            write_whole(_note(self.cached), json.dumps({**note, **asdict(self.target)}, indent=2).encode())
        except OSError as exc:
            say(f"{self.cached}: the engine cannot be kept: {exc.strerror}; it will be built again next time")
        return engine


def _note(engine: Path) -> Path:
    """The file beside a cached engine that says what it is: for which key, and the sha256 of its bytes."""
    return engine.with_name(f"{engine.name}.json")


@contextmanager
def _mapped(file: Path) -> Iterator[mmap.mmap]:
    """A file's bytes without a copy of them in memory."""
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _sha256(file: Path) -> str:
    with _mapped(file) as data:
        return hashlib.sha256(data).hexdigest()


def load(path: Path, backend: str, precision: str, store: EngineStore | None) -> TensorRtEngine:
    """The engine of the graph at `path`, found or built, having passed an inference; see `svrt.runtime.engines.load`.

    Raises `AbsentError` where there is no GPU or no TensorRT, `EngineError` where they cannot run the graph.
    """
    if store is None:
        raise EngineError(f"{path}: {backend} needs an EngineStore, which says where built engines are kept")
    try:
        return _Finder(path, backend, precision, store).engine()
    except AbsentError as exc:
        raise AbsentError(f"{backend} cannot run here: {exc}; use --backend onnxruntime") from exc
