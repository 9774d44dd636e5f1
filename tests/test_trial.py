"""`auto` on a processor: what is tried, taken, remembered and passed over. Backends are stand-ins with known times."""

import errno
import json
import os
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from svrt.errors import EngineError
from svrt.runtime import engines
from svrt.runtime.engines import AbsentError, EngineStore, UnsuitedError, files, trial


@dataclass
class Engine:
    """Gives twice its input, plus what its arithmetic adds to that."""

    machine: "Machine"
    name: str
    precision: str
    device = "cpu"
    inputs = {"x": (None, 6)}  # noqa: RUF012

    def __call__(self, inputs):
        self.machine.now += self.machine.seconds[self.name]
        self.machine.runs[self.name] = self.machine.runs.get(self.name, 0) + 1
        self.machine.seen.append(inputs["x"])
        rng = np.random.default_rng(1)
        error = self.machine.error.get(self.name, 0.0) * rng.standard_normal(inputs["x"].shape)
        return {"y": (2 * inputs["x"] * (1 + error)).astype(np.float32)}


@dataclass
class Machine:
    """What is installed, how long a run takes there, and what fails."""

    store: EngineStore
    said: list[str]
    versions: dict[str, str] = field(
        default_factory=lambda: {"openvino": "1", "openvino-fp32": "1", "onnxruntime": "1"}
    )
    seconds: dict[str, float] = field(
        default_factory=lambda: {"openvino": 0.1, "openvino-fp32": 0.2, "onnxruntime": 0.3}
    )
    precisions: dict[str, str] = field(default_factory=lambda: {"openvino": "bf16"})
    error: dict[str, float] = field(default_factory=lambda: {"openvino": 0.004})
    broken: set[str] = field(default_factory=set)
    unsuited: set[str] = field(default_factory=set)
    loaded: list[str] = field(default_factory=list)
    runs: dict[str, int] = field(default_factory=dict)
    seen: list[np.ndarray] = field(default_factory=list)
    now: float = 0.0

    def load_one(self, path, backend, precision, store):
        if backend not in self.versions and backend not in ("tensorrt", "tensorrt-rtx"):
            raise AbsentError(f"{backend} is not installed")
        if backend.startswith("tensorrt"):
            raise AbsentError("no GPU")
        if backend in self.broken:
            raise EngineError(f"{path}: {backend} cannot load it")
        if backend in self.unsuited:
            raise UnsuitedError(f"{path}: {backend} runs graphs of another kind")
        self.loaded.append(backend)
        return Engine(self, backend, self.precisions.get(backend, "fp32"))

    def load(self, graph):
        self.loaded.clear()
        self.said.clear()
        return engines.load(graph, "auto", "fp32", self.store)


@pytest.fixture
def graph(tmp_path) -> Path:
    (tmp_path / "g.onnx").write_bytes(b"graph")
    return tmp_path / "g.onnx"


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Machine:
    said: list[str] = []
    made = Machine(EngineStore(tmp_path / "cache" / "engines", 4, say=said.append), said)
    monkeypatch.setattr(trial, "installed", lambda: dict(made.versions))
    monkeypatch.setattr(trial, "load_one", made.load_one)
    monkeypatch.setattr(engines, "load_one", made.load_one)
    monkeypatch.setattr(trial.time, "perf_counter", lambda: made.now)
    return made


def notes(machine):
    return sorted(machine.store.cache.glob("*.trial.json"))


def test_the_fastest_is_taken_said_once_and_remembered(machine, graph):
    engine = machine.load(graph)
    assert (engine.name, engine.precision) == ("openvino", "bf16")
    assert machine.said[0] == "trying which backend runs g.onnx fastest here (once)"
    assert machine.said[1] == "g.onnx: openvino in bf16 is taken, 100 ms a run; onnxruntime 300 ms"
    assert len(machine.said) == 2
    machine.seconds["openvino"] = 9.0  # whatever the machine does meanwhile
    runs = dict(machine.runs)
    assert machine.load(graph).name == "openvino"
    assert (machine.said, machine.loaded, machine.runs) == ([], ["openvino"], runs)


def test_a_faster_type_that_differs_too_much_is_passed_over_for_float32_of_the_same_library(machine, graph):
    machine.error["openvino"] = 0.1
    assert machine.load(graph).name == "openvino-fp32"
    assert "openvino differs (cosine 0.9" in machine.said[1]
    machine.error["openvino-fp32"] = 0.02  # beyond float32's limit, though within bfloat16's
    graph.write_bytes(b"another graph")
    assert machine.load(graph).name == "onnxruntime"


def test_another_library_is_not_taken_for_less_than_a_tenth_of_the_time(machine, graph):
    machine.versions = {"openvino-fp32": "1", "onnxruntime": "1"}
    machine.seconds = {"openvino-fp32": 0.271, "onnxruntime": 0.3}
    assert machine.load(graph).name == "onnxruntime"
    assert machine.said[1] == "g.onnx: onnxruntime in fp32 is taken, 300 ms a run; openvino-fp32 271 ms"
    machine.seconds["openvino-fp32"] = 0.269
    graph.write_bytes(b"another graph")
    assert machine.load(graph).name == "openvino-fp32"


@pytest.mark.parametrize(("seconds", "saves_enough"), [(0.091, False), (0.089, True)])
@pytest.mark.parametrize(("backend", "precision"), [("openvino-int8", "dynamic int8"), ("vnni", "dynamic int8")])
def test_int8_is_taken_where_it_saves_a_tenth_of_what_bfloat16_takes(
    machine, graph, backend, precision, seconds, saves_enough
):
    machine.versions[backend] = "1"
    machine.precisions[backend] = precision
    machine.seconds[backend] = seconds
    machine.error[backend] = 0.03
    assert machine.load(graph).name == (backend if saves_enough else "openvino")
    machine.error[backend] = 0.1
    graph.write_bytes(b"another graph")
    assert machine.load(graph).name == "openvino"
    assert f"{backend} differs (cosine 0.99" in machine.said[1]


def test_what_a_backend_writes_while_it_is_tried_is_taken_away(machine, graph):
    left = machine.store.cache / ".trial-killed"
    left.mkdir(parents=True)
    (left / "weights.bin").write_bytes(b"large")
    load_one, caches = machine.load_one, []

    def writing(path, backend, precision, store):
        (store.cache / f"{backend}.bin").write_bytes(b"large")
        caches.append(store.cache)
        return load_one(path, backend, precision, store)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "load_one", writing)
        machine.load(graph)
    assert len(set(caches)) == 3 and caches[-1] == machine.store.cache, "two are tried, one is taken"
    assert sorted(file.name for file in machine.store.cache.iterdir()) == [notes(machine)[0].name, "openvino.bin"]


def test_one_that_runs_other_graphs_is_passed_over_without_a_word(machine, graph):
    machine.versions = {"ncnn": "1", "onnxruntime": "1"}
    machine.unsuited = {"ncnn"}
    assert machine.load(graph).name == "onnxruntime"
    assert machine.said[1:] == ["g.onnx: onnxruntime in fp32 is taken, 300 ms a run"]


def test_values_that_are_not_finite_do_not_agree():
    one = {"y": np.ones((2, 3), np.float32)}
    assert trial.least_cosine(one, one) == 1
    assert trial.least_cosine({"y": np.array([[1, 1, 1], [1, np.nan, 1]], np.float32)}, one) == -1
    assert trial.least_cosine({"y": np.zeros((2, 3), np.float32)}, one) == 0
    rows = {"y": np.array([[1, 1, 1], [1, -1, 0]], np.float32)}
    assert trial.least_cosine(rows, one) == pytest.approx(0, abs=1e-6), "the worst row, not their mean"


def test_one_that_cannot_load_the_graph_is_passed_over_with_its_reason(machine, graph):
    machine.broken = {"openvino", "openvino-fp32"}
    assert machine.load(graph).name == "onnxruntime"
    assert f"openvino failed ({graph}: openvino cannot load it)" in machine.said[1]
    machine.broken = {"openvino", "openvino-fp32", "onnxruntime"}
    graph.write_bytes(b"another graph")
    with pytest.raises(EngineError, match="onnxruntime cannot load it"):
        machine.load(graph)


def test_where_one_backend_is_installed_nothing_is_tried_or_said(machine, graph):
    machine.versions = {"onnxruntime": "1"}
    assert machine.load(graph).name == "onnxruntime"
    assert (machine.said, machine.runs, notes(machine)) == ([], {}, [])


@pytest.mark.parametrize("change", ["graph", "weights", "version", "threads", "batch", "processor", "stored"])
def test_it_is_tried_again_when_anything_that_decides_changes(machine, graph, monkeypatch, change):
    machine.load(graph)
    precision = "fp32"
    if change == "graph":
        graph.write_bytes(b"grape")
    elif change == "weights":
        graph.with_name("g.onnx.data").write_bytes(b"weights")
    elif change == "version":
        machine.versions["openvino"] = "2"
    elif change == "threads":
        monkeypatch.setattr(trial, "usable_processors", lambda: 3)
    elif change == "batch":
        machine.store = EngineStore(machine.store.cache, 8, say=machine.said.append)
    elif change == "processor":
        monkeypatch.setattr(trial, "processor", lambda: "another")
    else:
        precision = "fp16"
    machine.said.clear()
    engines.load(graph, "auto", precision, machine.store)
    assert machine.said[0].startswith("trying") and len(notes(machine)) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"key": 1}', b"7", b"\xff" * 40, b"[" * 100_000])
def test_a_damaged_note_is_replaced(machine, graph, content):
    machine.load(graph)
    (note,) = notes(machine)
    whole = note.read_bytes()
    note.write_bytes(content)
    assert machine.load(graph).name == "openvino"
    assert machine.said[0] == f"{note}: is damaged; backends are tried again"
    assert note.read_bytes() == whole


def test_a_note_of_something_else_under_the_same_name_is_not_believed(machine, graph):
    machine.load(graph)
    (note,) = notes(machine)
    whole = json.loads(note.read_text())
    for wrong in ({"key": "0" * 64, "backend": "onnxruntime"}, {"backend": ["onnxruntime"]}):
        note.write_text(json.dumps({**whole, **wrong}))
        assert machine.load(graph).name == "openvino"


def test_what_was_taken_and_no_longer_loads_is_tried_again(machine, graph):
    machine.load(graph)
    machine.broken = {"openvino"}
    assert machine.load(graph).name == "openvino-fp32"
    assert machine.said[0] == f"{graph}: openvino cannot load it; backends are tried again"
    machine.broken = set()
    assert machine.load(graph).name == "openvino-fp32", "and that is remembered"


def test_a_cache_that_cannot_be_written_is_told_and_the_backend_used(machine, graph):
    machine.store.cache.parent.write_text("a file where the cache should be")
    assert machine.load(graph).name == "openvino"
    assert machine.said[-1].startswith(f"{machine.store.cache}/g-")
    assert machine.said[-1].endswith("cannot be kept: Not a directory; backends will be tried again next time")


def test_a_trial_ends_soon_however_slow_the_graph(machine, graph):
    machine.seconds = {"openvino": 40.0, "openvino-fp32": 50.0, "onnxruntime": 60.0}
    machine.load(graph)
    assert machine.runs == {"openvino": 2, "onnxruntime": 2}, "one to warm up, one that counts"


def test_every_backend_sees_the_same_noise_of_full_batches(machine, graph):
    machine.load(graph)
    first = machine.seen[0]
    assert first.shape == (4, 6) and first.dtype == np.float32
    assert all(np.array_equal(first, seen) for seen in machine.seen)
    sizes = np.abs(first).max(axis=1)
    assert sizes.max() > 20 and sizes.min() < 4, "of units and of grey levels"


def test_a_batch_is_the_one_that_a_processor_will_be_given(machine, graph):
    machine.load(graph)
    machine.store = replace(machine.store, cpu_batch=2)
    machine.load(graph)
    assert [seen.shape for seen in (machine.seen[0], machine.seen[-1])] == [(4, 6), (2, 6)]
    assert len(notes(machine)) == 2


def test_nothing_is_timed_before_it_is_quiet(machine, graph):
    runs = []
    machine.store = replace(machine.store, quiet=lambda: runs.append(dict(machine.runs)))
    machine.load(graph)
    assert runs == [{}] and machine.runs
    machine.load(graph)
    assert len(runs) == 1, "what is remembered waits for nothing"


def test_a_cache_that_cannot_be_locked_is_used_without(machine, graph, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EBADF, "no locks here")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    assert machine.load(graph).name == "openvino" and len(notes(machine)) == 1


def test_the_only_backend_that_is_installed_is_used(machine, graph):
    machine.versions = {"openvino-fp32": "1"}
    assert machine.load(graph).name == "openvino-fp32" and not notes(machine)


def test_of_two_processes_one_tries(machine, graph):
    held, go = threading.Event(), threading.Event()

    def other():
        with trial.locked(machine.store, "tries backends"):
            held.set()
            go.wait(10)

    waiting = threading.Thread(target=other)
    waiting.start()
    held.wait(10)
    machine.store.cache.mkdir(parents=True, exist_ok=True)
    threading.Timer(0.2, go.set).start()
    machine.load(graph)
    waiting.join()
    assert machine.said[0] == f"waiting for another process that tries backends in {machine.store.cache}"


def test_a_processor_is_known_by_what_it_can_do(tmp_path):
    text = "processor : 0\nmodel name\t: X\ncpu MHz\t: 2594.3\nflags\t\t: fpu avx512_bf16\n\nprocessor : 1\n"
    (tmp_path / "a").write_text(text)
    (tmp_path / "b").write_text(text.replace("2594.3", "3100.0"))
    (tmp_path / "c").write_text(text.replace(" avx512_bf16", ""))
    a, b, c = (trial.processor(tmp_path / name) for name in "abc")
    assert a == b != c
    assert trial.processor(tmp_path / "none") == os.uname().machine


def test_what_is_installed_is_told_without_importing_it():
    found = trial.installed()
    assert found["onnxruntime"] and list(found) == [name for name in engines.CPU_BACKENDS if name in found]
