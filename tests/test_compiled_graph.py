"""Small graphs as OpenVINO compiled them: what is read back is what was compiled, or is compiled anew."""

import importlib.util
import os
import time
from dataclasses import replace

import numpy as np
import pytest
from small_graphs import write_encoder, write_vgg16
from svrt.bundle import sha256_of
from svrt.errors import EngineError
from svrt.runtime.engines import EngineStore, load, trial

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("openvino"), reason="OpenVINO is not installed")

WRITE = {"vgg16": write_vgg16, "encoder": write_encoder}
RNG = np.random.default_rng(0)
INPUTS = {
    "vgg16": {"images": (RNG.standard_normal((5, 3, 32, 32)) * 60).astype(np.float32)},
    "encoder": {"pixel_values_videos": RNG.standard_normal((1, 16, 3, 64, 64), dtype=np.float32)},
}


@pytest.fixture
def graph(tmp_path):
    return write_vgg16(tmp_path / "vgg16.onnx", "fp32")


SAID: list[str] = []


@pytest.fixture
def store(tmp_path):
    SAID.clear()
    return EngineStore(tmp_path / "cache", 8, say=SAID.append)


def files(store):
    return sorted(path.name for path in store.cache.iterdir())


def blob(store):
    (found,) = store.cache.glob("*.blob")
    return found


def engine(path, store, hint="bf16", stored="fp32"):
    from svrt.runtime.engines.openvino import OpenVinoEngine

    return OpenVinoEngine(path, "openvino", stored, hint, store)


@pytest.mark.parametrize("hint", ["bf16", "f32"])
@pytest.mark.parametrize("stored", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["vgg16", "encoder"])
def test_what_is_read_back_gives_the_same_bits_and_needs_the_graph_no_more(tmp_path, store, name, stored, hint):
    path = WRITE[name](tmp_path / f"{name}.onnx", stored)
    weights = path.with_name(f"{path.name}.data")
    digests = {file.name: sha256_of(file) for file in (path, weights) if file.is_file()}
    known = replace(store, digests=digests)
    without = engine(path, None, hint, stored)
    compiled = engine(path, known, hint, stored)
    path.unlink()
    read = engine(path, known, hint, stored)
    (expected, first, second) = (one(INPUTS[name]) for one in (without, compiled, read))
    assert list(expected) == list(first) == list(second)
    for output, values in expected.items():
        np.testing.assert_array_equal(first[output], values)
        np.testing.assert_array_equal(second[output], values)
    assert (read.inputs, read.precision) == (without.inputs, without.precision)
    assert (SAID, files(store)) == ([], [blob(store).name, "weights.lock"])


def test_an_input_that_does_not_fit_is_refused_of_a_graph_that_was_read_back(graph, store):
    for _ in range(2):
        with pytest.raises(EngineError, match=r"input 'images' is float32 \[1, 9, 32, 32\], expected"):
            engine(graph, store)({"images": np.zeros((1, 9, 32, 32), np.float32)})


def test_the_file_is_not_written_again(graph, store):
    engine(graph, store)
    before = blob(store).stat()
    engine(graph, store)
    assert (blob(store).stat().st_mtime_ns, blob(store).stat().st_ino) == (before.st_mtime_ns, before.st_ino)


DAMAGE = {
    "empty": lambda data: b"",
    "cut short in the header": lambda data: data[:100],
    "cut short after it": lambda data: data[:4096],
    "half": lambda data: data[: len(data) // 2],
    "the end is missing": lambda data: data[:-100],
    "zeros": lambda data: bytes(len(data)),
    "another header": lambda data: b"[]".ljust(4096, b"\0") + data[4096:],
    "no shapes": lambda data: b'{"inputs": 1, "outputs": [], "in_two_parts": false}'.ljust(4096, b"\0") + data[4096:],
    "of another version": lambda data: data.replace(b";ov=2", b";ov=1", 1),
    "the end is zeros": lambda data: data[:-4096] + bytes(4096),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_written_anew(graph, store, damage):
    expected = engine(graph, store)(INPUTS["vgg16"])["features"]
    whole = blob(store).read_bytes()
    damaged = damage(whole)
    if damaged == whole:
        pytest.skip("this OpenVINO does not say its version")
    blob(store).write_bytes(damaged)
    np.testing.assert_array_equal(engine(graph, store)(INPUTS["vgg16"])["features"], expected)
    written = blob(store)
    assert written.read_bytes() != damaged
    before = written.stat().st_ino
    engine(graph, store)
    assert written.stat().st_ino == before


@pytest.mark.parametrize("change", ["graph", "hint", "threads", "processor", "RECIPE"])
def test_what_is_compiled_otherwise_has_a_file_of_its_own(graph, store, monkeypatch, change):
    from svrt.runtime.engines import compiled_graph, openvino

    engine(graph, store)
    if change == "graph":
        write_vgg16(graph, "fp16")
    elif change == "threads":
        monkeypatch.setattr(openvino, "usable_processors", lambda: 1)
    elif change == "processor":
        monkeypatch.setattr(compiled_graph, "processor", lambda: "another")
    elif change == "RECIPE":
        monkeypatch.setattr(compiled_graph, change, 0)
    engine(graph, store, "f32" if change == "hint" else "bf16")
    assert len(list(store.cache.glob("*.blob"))) == 2


def test_a_trial_keeps_what_it_takes_alone(graph, store, monkeypatch):
    monkeypatch.setattr(trial, "installed", lambda: {"openvino": "1", "onnxruntime": "1"})
    monkeypatch.setattr(trial, "WORTH", 1e9)
    kept = []
    from svrt.runtime.engines.compiled_graph import CompiledGraph

    keep = CompiledGraph.keep
    monkeypatch.setattr(CompiledGraph, "keep", lambda self, *given: (kept.append(self.file.parent), keep(self, *given)))
    assert load(graph, "auto", "fp32", store).name == "openvino"
    assert kept == [store.cache]


def test_a_large_graph_is_compiled_each_time(graph, store, monkeypatch):
    from svrt.runtime.engines import compiled_graph

    monkeypatch.setattr(compiled_graph, "LARGEST", 1)
    engine(graph, store)
    assert not store.cache.exists()


def test_files_of_graphs_that_were_replaced_go_after_a_month(graph, store):
    store.cache.mkdir()
    for name, days in (("vgg16-old.blob", 31), ("vgg16-new.blob", 29), ("encoder-old.xml", 31)):
        (store.cache / name).write_bytes(b"")
        os.utime(store.cache / name, (time.time() - days * 86400,) * 2)
    engine(graph, store)
    left = [name for name in files(store) if "-new" in name or "-old" in name]
    assert left == ["encoder-old.xml", "vgg16-new.blob"] and len(files(store)) == 4


def test_where_it_cannot_be_kept_that_is_said_and_the_graph_runs(graph, store):
    store.cache.write_text("a file where the folder should be")
    expected = engine(graph, None)(INPUTS["vgg16"])["features"]
    np.testing.assert_array_equal(engine(graph, store)(INPUTS["vgg16"])["features"], expected)
    (said,) = SAID
    assert said.startswith(str(store.cache)) and "cannot be kept (" in said and said.endswith("compiled each time")


def test_a_full_disk_leaves_nothing_behind(graph, store, monkeypatch):
    def full(_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    engine(graph, store)(INPUTS["vgg16"])
    assert files(store) == ["weights.lock"] and "No space left" in SAID[0]
