"""Building TensorRT engines: from an ONNX graph to a plan for one version and one GPU, and the key that says which.

One code path for `tensorrt` 10.3 to 11 and `tensorrt_rtx` 1: the network is strongly typed, so every precision is the
graph's own. An engine of `tensorrt` belongs to the GPU it was built on, so its key names the device; one of TensorRT
for RTX is compiled to the end on the device that runs it, is portable over a compute capability, and can be built where
there is no GPU at all.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from platform import machine
from threading import Lock
from typing import Any

from ...bundle import EngineRecord
from ...errors import EngineError
from . import AbsentError
from .cuda import Device
from .files import write_whole

TENSORRT, RTX = "tensorrt", "tensorrt-rtx"
MODULES = {TENSORRT: ("tensorrt",), RTX: ("tensorrt_rtx_bindings", "tensorrt_rtx")}  # the latter: NVIDIA's own archive
INSTALL = {
    TENSORRT: "on a Jetson it comes with JetPack, so make the environment with --system-site-packages; elsewhere run: "
    "pip install tensorrt",
    RTX: "run: pip install --no-deps tensorrt-rtx-cu12-libs==1.7.1.116 tensorrt-rtx-cu12-bindings==1.7.1.116",
}
OLDEST = (10, 3)  # of `tensorrt`: what JetPack 6 has
WORKSPACE = 1 << 30  # bytes: what one kernel may take for scratch; more does not fit beside the decoder on 8 GB
RECIPE = 1  # of `build`: raised when it asks the builder for something else, so that older engines are built again

Progress = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Options:
    """What a builder is asked for: the largest batch of dynamic dimensions, and bytes of scratch."""

    max_batch: int
    workspace: int = WORKSPACE


@dataclass(frozen=True)
class Target:
    """What an engine is built by and for. `device` is "" where any GPU of the compute capability runs it."""

    backend: str
    version: str
    compute_capability: str
    device: str

    @classmethod
    def of(cls, backend: str, trt: Any, device: Device | None, compute_capability: str | None = None) -> Target:
        """The target on this machine; another compute capability than the GPU's only for TensorRT for RTX.

        Raises `EngineError` where TensorRT cannot build for it, or has no GPU to build on.
        """
        if backend == RTX:
            wanted = compute_capability or (device.compute_capability if device else None)
            known = _compute_capabilities(trt)
            if wanted not in known:
                problem = "has no GPU here to build for; give a compute capability"
                if wanted is not None:
                    problem = f"cannot build for compute capability {wanted}; it can for"
                raise EngineError(f"{backend} {problem}: {', '.join(known)}")
            return cls(backend, trt.__version__, wanted, "")
        if device is None:
            raise EngineError(f"{backend} builds only on the GPU that will run the engine, and there is none here")
        if compute_capability not in (None, device.compute_capability):
            raise EngineError(
                f"{backend} builds only for the GPU of this machine ({device.name}, compute capability "
                f"{device.compute_capability}), not for {compute_capability}; export there, or use {RTX}"
            )
        return cls(backend, trt.__version__, device.compute_capability, device.name)

    def key(self, graph_digest: str, options: Options) -> str:
        """sha256, in hex, of all that an engine depends on; `graph_digest` is that of `files.digest_of`."""
        parts = [RECIPE, graph_digest, asdict(self), asdict(options)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def record(self, graph: str, key: str) -> EngineRecord:
        """What a manifest says of an engine of `graph` for this target."""
        return EngineRecord(graph=graph, key=key, **asdict(self))


def engine_name(graph: Path, key: str) -> str:
    """File name of the engine of a graph."""
    return f"{graph.stem}-{key[:12]}.engine"


def find_module(backend: str, root: Path = Path("/")) -> Any:
    """TensorRT's Python module. `root` is the file system that says which board this is.

    Raises `EngineError` where it is missing, too old, or made for another machine.
    """
    failures = []
    for name in MODULES[backend]:
        try:
            module = import_module(name)
        except (ImportError, OSError) as exc:  # the latter: a library of its own that does not load
            failures.append(str(exc))
            continue
        check_module(backend, module.__version__, Path(module.__file__ or ""), root, machine())
        return module
    raise AbsentError(f"{backend} is not installed ({failures[0]}); {INSTALL[backend]}")


def check_module(backend: str, version: str, file: Path, root: Path, architecture: str) -> None:
    """Raise `EngineError` where `tensorrt` at `file` is older than 10.3, or a newer wheel than JetPack 6 can run.

    The registry has aarch64 wheels of TensorRT 11 that JetPack 6 installs and imports: they need CUDA 12.8 or newer.
    """
    if backend != TENSORRT:
        return
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST:
        raise EngineError(f"tensorrt {version} is too old: 10.3 or newer is needed")
    release = _jetson_release(root) if architecture == "aarch64" else None
    if release == 36 and numbers[0] >= 11 and "dist-packages" not in file.parts:
        raise EngineError(
            f"tensorrt {version} in {file.parent} cannot run on JetPack 6 (L4T {release}); remove it (pip uninstall "
            f"tensorrt): {INSTALL[TENSORRT].split(';')[0]}"
        )


def _jetson_release(root: Path) -> int | None:
    """The number behind R in `/etc/nv_tegra_release`: 36 is JetPack 6; None on other machines."""
    try:
        found = re.match(r"# R(\d+)", (root / "etc" / "nv_tegra_release").read_text())
    except OSError:
        return None
    return int(found[1]) if found else None


def _compute_capabilities(trt: Any) -> list[str]:
    """Those TensorRT for RTX builds for, such as "8.6", from its names, such as SM86."""
    numbers = [name[2:] for name in trt.ComputeCapability.__members__ if re.fullmatch(r"SM\d+", name)]
    return [f"{number[:-1]}.{number[-1]}" for number in sorted(numbers, key=int)]


def build(
    trt: Any,
    graph: Path,
    target: Target,
    options: Options,
    progress: Progress = lambda *_: None,
    timings: Path | None = None,
) -> memoryview:
    """The engine of `graph` for `target`, as bytes to be stored or loaded.

    `progress` is called from another thread with per cent done, of 100. `timings` is a file that remembers how long
    kernels took, so that the next engine is built faster: read if it is there and written, by `tensorrt` alone.
    Ctrl-C ends the build within a step.

    Raises `EngineError`, with the node's name where the graph is at fault.
    """
    monitor = _Monitor(progress)
    with ThreadPoolExecutor(max_workers=1) as pool:  # this thread stays free for Ctrl-C, which C++ cannot pass on
        work = pool.submit(_build, trt, graph, target, options, monitor, timings)
        try:
            plan = work.result()
        except BaseException:
            monitor.stop()
            raise
    progress(100, 100)
    return plan


def _build(
    trt: Any, graph: Path, target: Target, options: Options, monitor: _Monitor, timings: Path | None
) -> memoryview:
    log = logger(trt)
    log.errors.clear()
    builder = trt.Builder(log)
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # always so from 11 on
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    parser = trt.OnnxParser(network, log)  # owns weights that the network only points to
    if not parser.parse_from_file(str(graph)) or network.num_inputs == 0:
        raise EngineError(f"{graph}: {target.backend} cannot read it: {_parser_errors(parser, log)}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    config.clear_flag(trt.BuilderFlag.TF32)  # or float32 products keep 10 bits: fp16 is there for who wants the speed
    config.progress_monitor = reporter = _reporter(trt, monitor)
    if target.backend == RTX:
        config.num_compute_capabilities = 1
        number = target.compute_capability.replace(".", "")
        config.set_compute_capability(trt.ComputeCapability.__members__[f"SM{number}"], 0)
    _add_profile(builder, network, config, options, graph)
    with _Timings(config, timings if target.backend == TENSORRT else None):
        log.errors.clear()  # of timings that were refused
        plan = builder.build_serialized_network(network, config)
    del reporter
    if monitor.error is not None:
        raise monitor.error
    if plan is None:
        hint = _memory_hint(Path("/proc/meminfo"), options)
        raise EngineError(f"{graph}: {target.backend} cannot build an engine: {log.reason()}{hint}")
    return memoryview(plan)


def _memory_hint(meminfo: Path, options: Options) -> str:
    """Where a Jetson has too little contiguous memory for a kernel's scratch, what to do; "" elsewhere."""
    found = re.search(r"^CmaTotal: +[1-9].*\nCmaFree: +(\d+) kB", meminfo.read_text(), re.MULTILINE)
    if found is None or int(found[1]) * 1024 >= options.workspace:
        return ""
    need, free = options.workspace >> 20, int(found[1]) >> 10
    return f"; {need} MB of contiguous memory is wanted and {free} MB is free: stop the desktop, or restart the board"


def _add_profile(builder: Any, network: Any, config: Any, options: Options, graph: Path) -> None:
    """Allow batches from 1 to the largest, and tune for that: VGG-16 is given full batches but for a clip's last."""
    profile = builder.create_optimization_profile()
    dynamic = False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if -1 in shape[1:]:
            raise EngineError(f"{graph}: input {tensor.name!r} is {list(shape)}: only the first dimension may be free")
        if shape[:1] == (-1,):
            dynamic = True
            largest = (options.max_batch, *shape[1:])
            profile.set_shape(tensor.name, (1, *shape[1:]), largest, largest)
    if dynamic:
        config.add_optimization_profile(profile)


def _parser_errors(parser: Any, log: Any) -> str:
    """What the parser found, a clause per node; what it only logged where it blames no node."""
    clauses = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        if error.node_name() or error.node_operator():
            text = [line for line in error.desc().splitlines() if "Cuda Runtime" not in line]
            clauses.append(f"node {error.node_name()!r} ({error.node_operator()}): {' '.join(text)}")
    return "; ".join(clauses) or log.reason()


class _Timings:
    """The timing cache of a build, read from a file and written back to it; nothing without a file."""

    def __init__(self, config: Any, file: Path | None) -> None:
        self._config, self._file = config, file

    def __enter__(self) -> None:
        if self._file is None:
            return
        try:
            stored = self._file.read_bytes()
        except OSError:  # none yet, as a rule
            stored = b""
        for data in (stored, b""):  # one of another version or device is refused: begin anew
            cache = self._config.create_timing_cache(data)
            if cache is not None and self._config.set_timing_cache(cache, False):
                return

    def __exit__(self, *_: object) -> None:
        cache = None if self._file is None else self._config.get_timing_cache()
        if self._file is not None and cache is not None:
            with suppress(OSError):  # a full disk costs time later, not this engine
                write_whole(self._file, memoryview(cache.serialize()))


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class _Monitor:
    """How much of a build is done, from the phases within phases that TensorRT reports from several threads."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._phases: dict[str, _Phase] = {}
        self._lock = Lock()
        self._percent = -1
        self._stopped = False
        self.error: BaseException | None = None  # of `progress`: it must not pass through C++

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = _Phase(parent, max(1, steps))

    def finish(self, name: str) -> None:
        with self._lock:
            self._phases.pop(name, None)

    def step(self, name: str, index: int) -> bool:
        """A step is done. False asks TensorRT to end the build."""
        with self._lock:
            if name in self._phases:
                self._phases[name].done = index + 1
            roots = [name for name, phase in self._phases.items() if phase.parent is None]
            percent = int(max((self._fraction(root) for root in roots), default=0.0) * 99)
            if percent > self._percent and not self._stopped:
                self._percent = percent
                try:
                    self._progress(percent, 100)
                except BaseException as exc:
                    self.error, self._stopped = exc, True
            return not self._stopped

    def _fraction(self, name: str) -> float:
        phase = self._phases[name]
        inner = max((self._fraction(child) for child, p in self._phases.items() if p.parent == name), default=0.0)
        return min(1.0, (phase.done + inner) / phase.steps)

    def stop(self) -> None:
        """Let the build end at its next step."""
        self._stopped = True


def _reporter(trt: Any, monitor: _Monitor) -> Any:
    """`monitor` as TensorRT calls it."""

    class Reporter(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            monitor.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return monitor.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            monitor.finish(phase_name)

    return Reporter()


@lru_cache
def logger(trt: Any) -> Any:
    """TensorRT's logger: it keeps the first it is given for the whole process. Errors are kept, nothing is printed."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR) and len(self.errors) < 100:
                self.errors.append(message)

        def reason(self) -> str:
            """The first error, as one line; it is the cause of what follows."""
            return " ".join(self.errors[0].split()) if self.errors else "no reason given"

    return Log()
