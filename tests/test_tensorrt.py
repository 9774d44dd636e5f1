"""Engines are found, built, run and built again, on a stand-in for the GPU; the engines themselves are real ones."""

import gc
import importlib.util
import json
import os
import threading

import numpy as np
import onnxruntime
import pytest
from small_graphs import write_encoder, write_one_block, write_vgg16
from stand_in_gpu import NO_DEVICE, OUT_OF_MEMORY, UNSUPPORTED, Driver, TensorRT
from svrt.bundle import sha256_of
from svrt.errors import EngineError
from svrt.exporter.engines import Request
from svrt.runtime.engines import EngineStore, cuda, files, load, trial

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx_bindings") is None,
        reason="TensorRT for RTX is not installed; it has wheels for x86-64",
    ),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of timing caches, where RTX plays TensorRT
]
RTX_ONLY = ("ComputeCapability",)


class Machine:
    """A machine with a GPU and both flavours of TensorRT, and a user's cache."""

    def __init__(self, folder, monkeypatch):
        import tensorrt_rtx_bindings

        self.driver = Driver()
        self.rtx = TensorRT(tensorrt_rtx_bindings, self.driver)
        self.tensorrt = TensorRT(tensorrt_rtx_bindings, self.driver, version="10.3.0", lacks=RTX_ONLY)
        self.cache, self.said = folder / "cache", []
        modules = {"tensorrt": self.tensorrt, "tensorrt-rtx": self.rtx}
        monkeypatch.setattr(cuda, "_load_library", lambda: self.driver)
        monkeypatch.setattr("svrt.runtime.engines.tensorrt.find_module", modules.__getitem__)
        monkeypatch.setattr("svrt.exporter.engines.find_module", modules.__getitem__)

    def store(self, **more):
        return EngineStore(self.cache, max_batch=8, say=self.said.append, **more)

    def load(self, graph, name="tensorrt", **more):
        return load(graph, name, "fp32", self.store(**more))


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "installed", lambda: {"onnxruntime": ""})  # which it is: tests/test_trial.py
    return Machine(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory):
    """What is no more than its first convolution, for speed."""
    return write_one_block(tmp_path_factory.mktemp("vgg16") / "vgg16.onnx")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "encoder.onnx")


def images(count, seed=0):
    return np.random.default_rng(seed).uniform(-120, 130, (count, 3, 32, 32)).astype(np.float32)


def clip(seed=0):
    return np.random.default_rng(seed).standard_normal((1, 16, 3, 64, 64), np.float32)


def by_onnxruntime(graph, **inputs):
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


FLAVOURS = pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])


@FLAVOURS
def test_batches_of_every_size_come_back_as_they_should(machine, tmp_path, name):
    vgg16 = write_vgg16(tmp_path / "vgg16.onnx")
    engine = machine.load(vgg16, name)
    assert (engine.name, engine.precision, engine.device) == (name, "fp32", "cuda:0")
    for seed, count in enumerate((8, 3, 8, 1, 5)):
        batch = images(count, seed)
        found = engine({"images": batch})["features"]
        assert found.shape == (count, 512)
        np.testing.assert_array_equal(found, by_onnxruntime(vgg16, images=batch))
    assert "cuStreamBeginCapture_v2" not in machine.driver.counts, "batches vary, so nothing is recorded"


@FLAVOURS
def test_a_graph_of_one_shape_is_recorded_once_and_then_started_as_one_piece(machine, encoder, name):
    engine = machine.load(encoder, name)
    for seed in range(4):
        found = engine({"pixel_values_videos": clip(seed)})["video_tokens"]
        np.testing.assert_array_equal(found, by_onnxruntime(encoder, pixel_values_videos=clip(seed)))
    assert machine.driver.counts["cuStreamBeginCapture_v2"] == 1
    assert machine.driver.counts["cuGraphLaunch"] == 4


@FLAVOURS
def test_results_are_the_callers_own(machine, encoder, name):
    engine = machine.load(encoder, name)
    first = engine({"pixel_values_videos": clip(0)})["video_tokens"]
    engine({"pixel_values_videos": clip(1)})
    np.testing.assert_array_equal(first, by_onnxruntime(encoder, pixel_values_videos=clip(0)))


@pytest.mark.parametrize(
    "where", ["cuStreamEndCapture", "cuGraphInstantiateWithFlags", "execute_async_v3", "is_stream_capturable"]
)
def test_what_cannot_be_recorded_is_run_piece_by_piece(machine, encoder, where):
    machine.driver.fails[where] = UNSUPPORTED
    machine.rtx.capturable = where != "is_stream_capturable"
    machine.rtx.enqueues_while_recorded = where != "execute_async_v3"
    engine = machine.load(encoder, "tensorrt-rtx")
    for seed in range(3):
        found = engine({"pixel_values_videos": clip(seed)})["video_tokens"]
        np.testing.assert_array_equal(found, by_onnxruntime(encoder, pixel_values_videos=clip(seed)))
    assert "cuGraphLaunch" not in machine.driver.counts
    assert machine.driver.counts.get("cuStreamBeginCapture_v2", 0) == machine.rtx.capturable


def test_inputs_that_do_not_fit_are_refused_before_they_are_copied(machine, vgg16, encoder):
    engine = machine.load(vgg16)
    with pytest.raises(EngineError, match=r"vgg16.onnx: inputs are \['images'\], not \['pictures'\]"):
        engine({"pictures": images(1)})
    expected = r"expected float32 up to \[8, 3, 32, 32\]"
    for wrong in (images(9), images(0), images(2)[:, :, :16], images(2).astype(np.float64), images(2)[0]):
        with pytest.raises(EngineError, match=expected):
            engine({"images": wrong})
    with pytest.raises(EngineError, match=r"'pixel_values_videos' is .* expected float32 \[1, 16, 3, 64, 64\]"):
        machine.load(encoder)({"pixel_values_videos": np.repeat(clip(), 2, axis=0)})
    np.testing.assert_array_equal(engine({"images": images(2)})["features"], by_onnxruntime(vgg16, images=images(2)))


@FLAVOURS
def test_an_engine_is_built_once_and_then_found(machine, vgg16, name):
    machine.load(vgg16, name)
    assert [line.split(" (")[0] for line in machine.said if " %" not in line] == [
        f"building the {name} engine of vgg16.onnx for Stand-in GPU"
    ]
    assert [line.rsplit(":", 1)[1] for line in machine.said if " %" in line] == [" 25 %", " 50 %", " 75 %"]
    machine.said.clear()
    machine.load(vgg16, name)
    assert (machine.rtx.builds + machine.tensorrt.builds, machine.said) == (["vgg16.onnx"], [])
    names = sorted(path.suffix for path in machine.cache.iterdir())
    assert names == ([".cache", ".engine", ".json"] if name == "tensorrt" else [".engine", ".json"])


def cached(machine):
    (engine,) = machine.cache.glob("*.engine")
    return engine


def truncate(engine):
    engine.write_bytes(engine.read_bytes()[:-1000])


def overwrite(engine):
    engine.write_bytes(bytes(engine.stat().st_size))


def empty(engine):
    engine.write_bytes(b"")


def take_anothers_note(engine):
    note = engine.with_name(f"{engine.name}.json")
    note.write_text(json.dumps({**json.loads(note.read_text()), "key": "0" * 64}))


def cut_the_note(engine):
    engine.with_name(f"{engine.name}.json").write_text('{"key": "0')


def make_it_a_folder(engine):
    engine.unlink()
    engine.mkdir()


@pytest.mark.parametrize("damage", [truncate, overwrite, empty, take_anothers_note, cut_the_note])
def test_a_damaged_or_foreign_engine_is_built_again(machine, vgg16, damage):
    machine.load(vgg16)
    damage(cached(machine))
    machine.said.clear()
    engine = machine.load(vgg16)
    damaged = [line for line in machine.said if not line.startswith("building")]
    assert damaged == [f"{cached(machine)}: is damaged; it is built again"]
    np.testing.assert_array_equal(engine({"images": images(2)})["features"], by_onnxruntime(vgg16, images=images(2)))
    machine.load(vgg16)
    assert machine.tensorrt.builds == ["vgg16.onnx"] * 2


def test_an_engine_without_its_note_is_built_again(machine, vgg16):
    """The power went between the two."""
    machine.load(vgg16)
    cached(machine).with_name(f"{cached(machine).name}.json").unlink()
    machine.load(vgg16)
    assert machine.tensorrt.builds == ["vgg16.onnx"] * 2


@FLAVOURS
def test_an_engine_that_no_longer_loads_is_built_again(machine, vgg16, name):
    machine.load(vgg16, name)
    trt = {"tensorrt": machine.tensorrt, "tensorrt-rtx": machine.rtx}[name]
    trt.refuses.add(sha256_of(cached(machine)))
    machine.said.clear()
    machine.load(vgg16, name)
    assert machine.said[0].startswith(f"{cached(machine)}: cannot be used (")
    assert "Version mismatch" in machine.said[0] and machine.said[0].endswith("; it is built again")
    assert trt.builds == ["vgg16.onnx"] * 2


@pytest.mark.parametrize("change", ["version", "device", "capability", "graph", "batch"])
def test_an_engine_of_another_version_gpu_graph_or_batch_is_not_used(machine, tmp_path, change):
    graph = write_one_block(tmp_path / "vgg16.onnx")
    load(graph, "tensorrt", "fp32", machine.store())
    store = machine.store()
    if change == "version":
        machine.tensorrt.__version__ = "10.3.1"
    elif change == "device":
        machine.driver.name = "Another GPU"
    elif change == "capability":
        machine.driver.capability = (8, 9)
    elif change == "graph":
        write_one_block(graph, size=48)
    else:
        store = EngineStore(machine.cache, max_batch=4)
    load(graph, "tensorrt", "fp32", store)
    assert machine.tensorrt.builds == ["vgg16.onnx"] * 2
    assert len(list(machine.cache.glob("*.engine"))) == 2


def test_a_portable_engine_serves_every_gpu_of_its_compute_capability(machine, vgg16):
    machine.load(vgg16, "tensorrt-rtx")
    machine.driver.name = "Another GPU"
    machine.load(vgg16, "tensorrt-rtx")
    assert machine.rtx.builds == ["vgg16.onnx"]


@pytest.fixture
def bundle(machine, tmp_path):
    """A bundle's folder with engines of TensorRT for RTX for 8.6, and the records of them."""
    folder = tmp_path / "bundle"
    write_one_block(folder / "vgg16.onnx")
    write_encoder(folder / "encoder.onnx")
    return folder, Request("tensorrt-rtx", "8.6").build(folder, {})


def test_the_engines_that_came_with_a_bundle_are_used_where_they_fit(machine, bundle):
    folder, records = bundle
    machine.rtx.builds.clear()
    for name in ("vgg16.onnx", "encoder.onnx"):
        machine.load(folder / name, "tensorrt-rtx", bundle=folder, records=records)
    assert (machine.rtx.builds, machine.said, machine.cache.exists()) == ([], [], False)
    machine.driver.capability = (8, 9)
    machine.load(folder / "vgg16.onnx", "tensorrt-rtx", bundle=folder, records=records)
    assert machine.rtx.builds == ["vgg16.onnx"]


@pytest.mark.parametrize("damage", [truncate, empty, os.unlink, make_it_a_folder])
def test_a_bundles_engine_that_does_not_load_is_left_alone_and_another_is_built(machine, bundle, damage):
    folder, records = bundle
    (shipped,) = (folder / "engines").glob("vgg16-*.engine")
    damage(shipped)
    machine.load(folder / "vgg16.onnx", "tensorrt-rtx", bundle=folder, records=records)
    assert machine.said[0].startswith(f"{shipped}: cannot be used (")
    assert cached(machine).name == shipped.name
    machine.load(folder / "vgg16.onnx", "tensorrt-rtx", bundle=folder, records=records)
    assert machine.rtx.builds == ["vgg16.onnx", "encoder.onnx", "vgg16.onnx"]


def test_of_two_that_build_at_once_one_builds_and_the_other_waits(machine, vgg16):
    engines = []
    threads = [threading.Thread(target=lambda: engines.append(machine.load(vgg16))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert machine.tensorrt.builds == ["vgg16.onnx"]
    assert f"waiting for another process that builds an engine in {machine.cache}" in machine.said
    for engine in engines:
        np.testing.assert_array_equal(
            engine({"images": images(2)})["features"], by_onnxruntime(vgg16, images=images(2))
        )


@pytest.mark.parametrize("made", [True, False])
def test_where_nothing_can_be_kept_the_engine_is_used_all_the_same(machine, vgg16, tmp_path, monkeypatch, made):
    if made:

        def full(path, data):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("svrt.runtime.engines.tensorrt.write_whole", full)
    else:
        machine.cache.write_text("a file where the folder should be")
    engine = machine.load(vgg16)
    assert machine.said[-1].startswith(f"{machine.cache}/vgg16-")
    assert "the engine cannot be kept: " in machine.said[-1] and "built again next time" in machine.said[-1]
    np.testing.assert_array_equal(engine({"images": images(2)})["features"], by_onnxruntime(vgg16, images=images(2)))


def test_a_file_is_whole_or_absent(tmp_path):
    with pytest.raises(TypeError):
        files.write_whole(tmp_path / "engine", 7)
    assert os.listdir(tmp_path) == []
    files.write_whole(tmp_path / "engine", b"old")
    with pytest.raises(TypeError):
        files.write_whole(tmp_path / "engine", 7)
    assert os.listdir(tmp_path) == ["engine"] and (tmp_path / "engine").read_bytes() == b"old"


def test_tensorrt_remembers_how_long_kernels_took_and_a_damaged_memory_is_dropped(machine, vgg16, encoder):
    machine.load(vgg16)
    (timings,) = machine.cache.glob("timings-10.3.0-8.6.cache")
    assert timings.stat().st_size > 0
    timings.write_bytes(b"damaged")
    machine.load(encoder)
    assert timings.read_bytes() != b"damaged"


def test_auto_takes_tensorrt_first_then_tensorrt_for_rtx_then_onnxruntime(machine, vgg16):
    assert machine.load(vgg16, "auto").name == "tensorrt"
    machine.tensorrt.broken.add("vgg16.onnx")
    machine.said.clear()
    assert machine.load(vgg16, "auto").name == "tensorrt-rtx"
    assert [line for line in machine.said if line.endswith("; another backend is used")] == [
        f"{vgg16}: tensorrt gives values in 'features' that are not finite; another backend is used"
    ]
    machine.rtx.broken.add("vgg16.onnx")
    engine = machine.load(vgg16, "auto")
    assert (engine.name, engine.device) == ("onnxruntime", "cpu")
    with pytest.raises(EngineError, match=r"vgg16.onnx: tensorrt gives values in 'features' that are not finite"):
        machine.load(vgg16, "tensorrt")


def test_auto_without_a_store_is_onnxruntime(machine, vgg16):
    assert load(vgg16).name == "onnxruntime"
    with pytest.raises(EngineError, match="tensorrt needs an EngineStore"):
        load(vgg16, "tensorrt")


def test_where_there_is_no_gpu_auto_says_nothing_and_asking_for_tensorrt_says_why(machine, vgg16, monkeypatch):
    machine.driver.fails["cuInit"] = NO_DEVICE
    assert machine.load(vgg16, "auto").name == "onnxruntime"
    assert machine.said == []
    with pytest.raises(EngineError, match=r"^tensorrt cannot run here: .*CUDA_ERROR_NO_DEVICE; use --backend onnxrun"):
        machine.load(vgg16, "tensorrt")
    monkeypatch.undo()
    monkeypatch.setattr(cuda, "LIBRARY", "libcuda-is-not-here.so.1")
    with pytest.raises(EngineError, match=r"^tensorrt-rtx cannot run here: no NVIDIA driver \(libcuda-is-not-here"):
        machine.load(vgg16, "tensorrt-rtx")


def test_too_little_memory_of_the_gpu_is_an_error_of_one_line_and_auto_goes_on(machine, vgg16):
    machine.driver.fails["cuMemAlloc_v2"] = OUT_OF_MEMORY
    with pytest.raises(EngineError, match=r"^CUDA: cuMemAlloc_v2 failed with CUDA_ERROR_OUT_OF_MEMORY$"):
        machine.load(vgg16)
    assert machine.load(vgg16, "auto").name == "onnxruntime"


def test_a_driver_that_lacks_a_function_is_told_to_be_too_old(machine, vgg16):
    del machine.driver.cuGraphInstantiateWithFlags
    with pytest.raises(EngineError, match=r"driver has no cuGraphInstantiateWithFlags: it is too old"):
        machine.load(vgg16)


@FLAVOURS
def test_everything_on_the_gpu_is_given_back_with_the_engine(machine, encoder, name):
    engine = machine.load(encoder, name)
    for seed in range(3):
        engine({"pixel_values_videos": clip(seed)})
    assert machine.driver.held == (1, 2, 2, 1, 1)  # context; input and output on either side; stream; recorded graph
    del engine
    gc.collect()
    assert machine.driver.held == (0, 0, 0, 0, 0)


def test_an_engine_that_fails_its_first_inference_leaves_nothing_on_the_gpu(machine, vgg16):
    machine.tensorrt.broken.add("vgg16.onnx")
    with pytest.raises(EngineError):
        machine.load(vgg16)
    gc.collect()
    assert machine.driver.held == (0, 0, 0, 0, 0)
