"""Which of the processor's backends runs a graph fastest here: tried once, and remembered.

The outcome of a trial lies in the engine cache under a key of all that decides it: graph, versions of the backends,
processor, threads, batch. So `auto` gives the same backend, and the same numbers, each time on a machine. A backend
must agree with the float32 arithmetic of another one on seeded input before its time counts.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np

from ...bundle import GRAPH_COSINE
from ...errors import EngineError
from ...kernels.vnni.compiler import NEEDED, find_compiler, recipe
from ..processors import processor, processor_flags, usable_processors
from . import (
    ANYWHERE,
    CPU_BACKENDS,
    QUANTIZED,
    VNNI,
    Engine,
    EngineStore,
    UnsuitedError,
    load_one,
    package_of,
)
from .files import digest_of, locked, write_whole

RECIPE = 5  # of the trial: raised when it judges differently, so that what was remembered is not used
RUNS = 5  # timed, after one that is not; the shortest counts, as whatever else runs can only lengthen one
PATIENCE_S = 3.0  # seconds of timed runs of a backend: none begins later
WORTH = 0.9  # of ONNX Runtime's time, at most, for another to be taken: a second library takes memory of its own
SEED = 0
AMPLITUDES = (1.0, 8.0, 64.0)  # of the noise, by place in the batch: graphs read anything from units to grey levels
ROUNDING = {"openvino": "openvino-fp32"}  # backends that may round to bfloat16, and the same without
_APART = ".trial-"


class _CpuEngine(Engine, Protocol):
    """What every engine of a processor says besides: its inputs' shapes, None for a dimension left to the caller."""

    inputs: dict[str, tuple[int | None, ...]]


@dataclass(frozen=True)
class Entry:
    """How a backend did: milliseconds of its shortest run, precision, and the least cosine with float32 in a batch."""

    ms: float
    precision: str
    cosine: float

    @property
    def agrees(self) -> bool:
        return self.cosine >= GRAPH_COSINE.get(self.precision, 1.0)


@dataclass(frozen=True)
class Outcome:
    """A trial: the backend taken, and how each did that ran; `failed` are one-line reasons by backend."""

    key: str
    backend: str
    entries: dict[str, Entry]
    failed: dict[str, str] = field(default_factory=dict)


def fastest(path: Path, precision: str, store: EngineStore) -> Engine:
    """The engine of the graph at `path`, stored in `precision`, by the fastest backend of this processor.

    The first use of a graph tries each backend that is installed; `store.say` is told what was taken. Raises
    `EngineError` where none can run it.
    """
    versions = installed()
    if len(versions) <= 1:
        return load_one(path, next(iter(versions), ANYWHERE), precision, store)
    trial = _Trial(path, precision, store, versions)
    engine = trial.remembered()
    if engine is not None:
        return engine
    with locked(store, "tries backends"):
        return trial.remembered() or trial.decide()  # another process may have been first


def try_all(path: Path, precision: str, store: EngineStore) -> Outcome:
    """How every installed backend of this processor runs the graph; not remembered. Raises `EngineError` as above."""
    return _Trial(path, precision, store, installed()).outcome()


def installed() -> dict[str, str]:
    """The version of each backend of the processor that is installed, in the order of `CPU_BACKENDS`."""
    found = {}
    for backend in CPU_BACKENDS:
        package = package_of(backend)
        if backend == VNNI:
            if processor_flags() >= NEEDED and find_compiler() is not None:
                found[backend] = recipe()
        elif find_spec(package) is not None:
            try:
                found[backend] = version(package)
            except PackageNotFoundError:  # of a board's own packages, or under another name
                found[backend] = ""
    return found


class _Trial:
    """The trial of one graph."""

    def __init__(self, path: Path, precision: str, store: EngineStore, versions: Mapping[str, str]) -> None:
        self.path, self.precision, self.store, self.versions = path, precision, store, versions
        self.batch = store.cpu_batch or store.max_batch
        parts = [
            *(RECIPE, digest_of(path, store.digests), precision, dict(versions), self.batch),
            *(processor(), usable_processors()),
        ]
        self.key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        self.note = store.cache / f"{path.stem}-{self.key[:12]}.trial.json"

    def remembered(self) -> Engine | None:
        """The engine that an earlier trial took; None without one, or where that engine no longer loads."""
        try:
            note = json.loads(self.note.read_bytes())
            key, backend = note["key"], str(note["backend"])
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            self.store.say(f"{self.note}: is damaged; backends are tried again")
            return None
        if key != self.key or backend not in self.versions:
            return None
        try:
            return load_one(self.path, backend, self.precision, self.store)
        except EngineError as exc:
            self.store.say(f"{exc}; backends are tried again")
            return None

    def decide(self) -> Engine:
        """Try every backend, take the fastest that agrees, and remember that."""
        self.store.say(f"trying which backend runs {self.path.name} fastest here (once)")
        self.store.quiet()
        for left in self.store.cache.glob(f"{_APART}*"):  # by a process that was killed: the lock is held
            shutil.rmtree(left, ignore_errors=True)
        outcome = self.outcome()
        self.store.say(f"{self.path.name}: {_verdict(outcome)}")
        try:
            write_whole(self.note, json.dumps(asdict(outcome), indent=2).encode())
        except OSError as exc:
            self.store.say(f"{self.note}: cannot be kept: {exc.strerror}; backends will be tried again next time")
        return load_one(self.path, outcome.backend, self.precision, self.store)

    def outcome(self) -> Outcome:
        """Each backend by itself, as several engines of a large graph may not fit into memory at once."""
        entries: dict[str, Entry] = {}
        failed: dict[str, str] = {}
        expected: dict[str, np.ndarray] | None = None
        for backend in sorted(self.versions, key=lambda name: name != ANYWHERE):  # the one to be held against first
            if any(backend == ROUNDING.get(name) for name, entry in entries.items() if entry.agrees):
                continue  # the same library, slower
            try:
                ms, precision, outputs = self._try(backend)
            except UnsuitedError:
                continue
            except EngineError as exc:
                failed[backend] = str(exc)
                continue
            expected = outputs if expected is None else expected
            entries[backend] = Entry(round(ms, 3), precision, least_cosine(outputs, expected))
        agreeing = {name: entry for name, entry in entries.items() if entry.agrees}
        if not agreeing:
            raise EngineError(next(iter(failed.values()), f"{self.path}: no backend here runs it as it should"))
        # int8 rounds four times as much as bfloat16, and own kernels read a file of weights: it must be worth that.
        weights = {ANYWHERE: WORTH, QUANTIZED: 1 / WORTH, VNNI: 1 / WORTH}
        times = {name: entry.ms * weights.get(name, 1) for name, entry in agreeing.items()}
        return Outcome(self.key, min(times, key=times.__getitem__), entries, failed)

    def _try(self, backend: str) -> tuple[float, str, dict[str, np.ndarray]]:
        """Milliseconds of the shortest run, the precision, and the outputs."""
        with self._thrown_away() as store:
            engine: _CpuEngine = load_one(self.path, backend, self.precision, store)  # type: ignore[assignment]
            inputs = {name: self._noise(shape) for name, shape in engine.inputs.items()}
            outputs = engine(inputs)
            times: list[float] = []
            while len(times) < RUNS and sum(times) < PATIENCE_S:
                started = time.perf_counter()
                engine(inputs)
                times.append(time.perf_counter() - started)
            return min(times) * 1e3, engine.precision, outputs

    @contextmanager
    def _thrown_away(self) -> Iterator[EngineStore]:
        """A store for one backend's files, which may be large: those of the one that is taken are written again."""
        try:
            self.store.cache.mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(prefix=_APART, dir=self.store.cache, ignore_cleanup_errors=True)
        except OSError:  # said once, by whoever keeps what is found out
            yield replace(self.store, say=lambda _: None, keeps=False)
            return
        with folder as name:
            yield replace(self.store, cache=Path(name), say=lambda _: None, keeps=False)

    def _noise(self, shape: tuple[int | None, ...]) -> np.ndarray:
        filled = [side or self.batch for side in shape]
        noise = np.random.default_rng(SEED).standard_normal(filled, dtype=np.float32)
        for row in range(len(noise)):
            noise[row] *= AMPLITUDES[row % len(AMPLITUDES)]
        return noise


def least_cosine(outputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """The least cosine over all outputs, row by row along their first axis; -1 where one is not finite."""
    least = 1.0
    for name, reference in expected.items():
        for a, b in zip(outputs[name].astype(np.float64), reference.astype(np.float64), strict=True):
            scale = float(np.linalg.norm(a) * np.linalg.norm(b))
            cosine = float(np.array_equal(a, b)) if scale == 0 else float(a.ravel() @ b.ravel()) / scale
            least = min(least, cosine if np.isfinite(cosine) else -1.0)
    return round(least, 8)


def _verdict(outcome: Outcome) -> str:
    """What was taken and why, in a line."""
    chosen = outcome.entries[outcome.backend]
    others = [
        f"{name} {entry.ms:.0f} ms" if entry.agrees else f"{name} differs (cosine {entry.cosine:.4f})"
        for name, entry in outcome.entries.items()
        if name != outcome.backend
    ]
    others += [f"{name} failed ({reason})" for name, reason in outcome.failed.items()]
    taken = f"{outcome.backend} in {chosen.precision} is taken, {chosen.ms:.0f} ms a run"
    return "; ".join([taken, *([", ".join(others)] if others else [])])
