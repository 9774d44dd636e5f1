"""Engines are really built here, by TensorRT for RTX, which needs no GPU for that."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import interruptible
from onnx import TensorProto, helper
from small_graphs import VIT_L, write_encoder, write_vgg16
from svrt.bundle import sha256_of
from svrt.errors import EngineError
from svrt.exporter.engines import Request
from svrt.runtime.engines import AbsentError, tensorrt_build
from svrt.runtime.engines.files import digest_of
from svrt.runtime.engines.tensorrt_build import Options, Target, build, check_module, find_module

needs_rtx = pytest.mark.skipif(
    not any(importlib.util.find_spec(name) for name in tensorrt_build.MODULES["tensorrt-rtx"]),
    reason="TensorRT for RTX is not installed; it has wheels for x86-64",
)
OPTIONS = Options(max_batch=8)
TARGET = Target("tensorrt-rtx", "1.7.1.116", "8.6", "")


def rtx():
    return find_module("tensorrt-rtx")


def rtx_target(compute_capability="8.6"):
    return Target.of("tensorrt-rtx", rtx(), None, compute_capability)


@needs_rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("write", [write_vgg16, write_encoder])
def test_an_engine_is_built_and_tells_how_far_it_is(tmp_path, write, precision):
    graph = write(tmp_path / "graph.onnx", precision)
    seen = []
    plan = build(rtx(), graph, rtx_target(), OPTIONS, lambda done, total: seen.append(done * 100 / total))
    weights = graph.with_name("graph.onnx.data").stat().st_size
    assert weights < len(plan) < 2 * weights + 4_000_000, "the engine holds the weights, in the graph's own precision"
    assert seen == sorted(seen) and seen[-1] == 100 and len(seen) > 10


@needs_rtx
@pytest.mark.parametrize(
    ("node", "says"),
    [
        (helper.make_node("Conv", ["x", "w"], ["y"], "layer.3/conv"), r"node 'layer.3/conv' \(Conv\): .*"),
        (
            helper.make_node("Twist", ["x"], ["y"], "layer.3/twist", domain="ours"),
            r"node 'layer.3/twist' \(Twist\): .*",
        ),
    ],
)
def test_a_graph_that_tensorrt_cannot_read_is_refused_with_the_nodes_name(tmp_path, node, says):
    path = tmp_path / "bad.onnx"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    weights = [onnx.numpy_helper.from_array(np.ones((2, 7, 3, 3), np.float32), "w")]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ours", 1)]
    onnx.save(
        helper.make_model(helper.make_graph([node], "bad", ends[:1], ends[1:], weights), opset_imports=opsets), path
    )
    with pytest.raises(EngineError, match=rf"^{path}: tensorrt-rtx cannot read it: {says}$") as caught:
        build(rtx(), path, rtx_target(), OPTIONS)
    assert "\n" not in str(caught.value)


@needs_rtx
def test_missing_weights_and_a_file_that_is_no_graph_are_refused_by_name(tmp_path):
    graph = write_vgg16(tmp_path / "vgg16.onnx")
    graph.with_name("vgg16.onnx.data").rename(tmp_path / "elsewhere")
    with pytest.raises(EngineError, match=r"vgg16.onnx: .*vgg16.onnx.data"):
        build(rtx(), graph, rtx_target(), OPTIONS)
    graph.write_bytes(b"hello" * 100)
    with pytest.raises(EngineError, match=r"vgg16.onnx: tensorrt-rtx cannot read it"):
        build(rtx(), graph, rtx_target(), OPTIONS)


@needs_rtx
def test_an_input_with_a_free_dimension_that_is_not_the_batch_is_refused(tmp_path):
    path = tmp_path / "free.onnx"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "width"]) for name in "xy"]
    node = helper.make_node("Relu", ["x"], ["y"])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(helper.make_graph([node], "free", ends[:1], ends[1:]), opset_imports=opset), path)
    with pytest.raises(EngineError, match=r"free.onnx: input 'x' is \[-1, -1\]: only the first dimension may be free"):
        build(rtx(), path, rtx_target(), OPTIONS)


@needs_rtx
def test_float32_is_not_rounded_to_tf32(tmp_path, monkeypatch):
    configs, create = [], rtx().Builder.create_builder_config
    monkeypatch.setattr(
        rtx().Builder, "create_builder_config", lambda self: configs.append(create(self)) or configs[-1]
    )
    build(rtx(), write_encoder(tmp_path / "encoder.onnx"), rtx_target(), OPTIONS)
    (config,) = configs
    assert not config.get_flag(rtx().BuilderFlag.TF32)
    assert config.get_memory_pool_limit(rtx().MemoryPoolType.WORKSPACE) == 1 << 30
    assert config.get_compute_capability(0) == rtx().ComputeCapability.SM86


@needs_rtx
def test_ctrl_c_ends_a_build(tmp_path):
    graph = write_vgg16(tmp_path / "vgg16.onnx")
    pressed, seen = threading.Event(), []

    def press(done, total):
        seen.append(done)
        if not pressed.is_set():
            pressed.set()
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.3)  # the main thread wakes up and asks for the end

    with interruptible(), pytest.raises(KeyboardInterrupt):
        build(rtx(), graph, rtx_target(), OPTIONS, press)
    assert len(seen) <= 2 and 100 not in seen


@needs_rtx
def test_an_error_while_telling_progress_ends_the_build_and_is_raised(tmp_path):
    def fail(done, total):
        raise RuntimeError("no terminal")

    with pytest.raises(RuntimeError, match="no terminal"):
        build(rtx(), write_vgg16(tmp_path / "vgg16.onnx"), rtx_target(), OPTIONS, fail)


@needs_rtx
def test_an_unknown_compute_capability_is_told_which_there_are(monkeypatch):
    with pytest.raises(
        EngineError, match=r"cannot build for compute capability 8.7; it can for: 7.5, 8.0, 8.6, 8.9, 12"
    ):
        Request("tensorrt-rtx", "8.7").check()
    with pytest.raises(EngineError, match=r"cannot build for compute capability x; it can for: 7.5"):
        Request("tensorrt-rtx", "x").check()
    monkeypatch.setattr("svrt.runtime.engines.cuda.LIBRARY", "libcuda-is-not-here.so.1")
    with pytest.raises(EngineError, match=r"has no GPU here to build for; give a compute capability: 7.5"):
        Request("tensorrt-rtx").check()


@needs_rtx
def test_the_export_builds_both_graphs_and_says_what_for(tmp_path):
    graphs = [write_vgg16(tmp_path / "vgg16.onnx", "fp16"), write_encoder(tmp_path / "encoder.onnx", "fp16")]
    digests = {file.name: sha256_of(file) for graph in graphs for file in (graph, Path(f"{graph}.data"))}
    seen = []
    records = Request("tensorrt-rtx", "8.6").build(tmp_path, digests, lambda done, total: seen.append(done / total))
    assert seen == sorted(seen) and seen[-1] == 1
    assert [record.graph for record in records.values()] == ["vgg16.onnx", "encoder.onnx"]
    for name, record in records.items():
        assert (tmp_path / name).stat().st_size > 100_000
        assert name == f"engines/{record.graph.removesuffix('.onnx')}-{record.key[:12]}.engine"
        assert (record.backend, record.compute_capability, record.device) == ("tensorrt-rtx", "8.6", "")
        assert record.version == rtx().__version__
        assert record.key == rtx_target().key(digest_of(tmp_path / record.graph, {}), OPTIONS), "as the runtime has it"
    assert sorted(os.listdir(tmp_path / "engines")) == sorted(Path(name).name for name in records)


def test_the_key_changes_with_everything_that_an_engine_depends_on(tmp_path):
    graph, weights = tmp_path / "a.onnx", tmp_path / "a.onnx.data"
    graph.write_bytes(b"graph")
    weights.write_bytes(b"weights")
    digest = digest_of(graph, {})
    assert digest == digest_of(graph, {"a.onnx": sha256_of(graph), "a.onnx.data": sha256_of(weights)})
    keys = {TARGET.key(digest, OPTIONS), TARGET.key(digest, replace(OPTIONS, max_batch=4))}
    keys |= {TARGET.key(digest, replace(OPTIONS, workspace=1 << 28))}
    for other in ({"backend": "tensorrt"}, {"version": "1.8"}, {"compute_capability": "8.9"}, {"device": "Orin"}):
        keys.add(replace(TARGET, **other).key(digest, OPTIONS))
    weights.write_bytes(b"weightz")
    keys.add(TARGET.key(digest_of(graph, {}), OPTIONS))
    graph.write_bytes(b"grape")
    keys.add(TARGET.key(digest_of(graph, {}), OPTIONS))
    assert len(keys) == 9
    assert all(len(key) == 64 for key in keys)


def test_known_hashes_are_not_computed_again(tmp_path):
    """Of gigabytes that were hashed with the bundle."""
    (tmp_path / "a.onnx").write_bytes(b"graph")
    known = {"a.onnx": "1" * 64, "a.onnx.data": "2" * 64}
    assert digest_of(tmp_path / "a.onnx", known) == digest_of(Path("/nowhere/a.onnx"), known)


def test_a_missing_tensorrt_is_told_how_to_install(monkeypatch):
    monkeypatch.setattr(tensorrt_build, "MODULES", {"tensorrt": ("no_trt",), "tensorrt-rtx": ("no_rtx", "no_rtx_2")})
    monkeypatch.setattr("svrt.exporter.engines.MODULES", tensorrt_build.MODULES)
    with pytest.raises(
        AbsentError, match=r"tensorrt-rtx is not installed .*no_rtx.*pip install --no-deps tensorrt-rtx-cu12"
    ):
        Request("tensorrt-rtx", "8.6").check()
    with pytest.raises(AbsentError, match=r"tensorrt is not installed .*JetPack.*--system-site-packages"):
        Request("tensorrt").check()
    with pytest.raises(EngineError, match=r"'openvino' are not known; one of tensorrt, tensorrt-rtx"):
        Request("openvino").check()


@pytest.mark.parametrize(
    ("meminfo", "says"),
    [
        (
            "MemTotal: 7800000 kB\nCmaTotal:         262144 kB\nCmaFree:          204800 kB\n",
            "1024 MB .* and 200 MB is free",
        ),
        ("MemTotal: 7800000 kB\nCmaTotal:        2097152 kB\nCmaFree:         1500000 kB\n", None),
        ("MemTotal: 7800000 kB\nCmaTotal:              0 kB\nCmaFree:               0 kB\n", None),
        ("MemTotal: 7800000 kB\n", None),
    ],
)
def test_a_board_short_of_contiguous_memory_is_told_so(tmp_path, meminfo, says):
    (tmp_path / "meminfo").write_text(meminfo)
    hint = tensorrt_build._memory_hint(tmp_path / "meminfo", OPTIONS)
    assert re.search(says, hint) if says else hint == ""


class Orin:
    name, compute_capability = "Orin", "8.7"


class TensorRT:
    __version__ = "10.3.0"


def test_tensorrt_itself_builds_for_the_gpu_of_this_machine_alone():
    expected = Target("tensorrt", "10.3.0", "8.7", "Orin")
    assert Target.of("tensorrt", TensorRT, Orin) == Target.of("tensorrt", TensorRT, Orin, "8.7") == expected
    with pytest.raises(
        EngineError, match=r"only for the GPU of this machine \(Orin, compute capability 8.7\), not for 8.6"
    ):
        Target.of("tensorrt", TensorRT, Orin, "8.6")
    with pytest.raises(EngineError, match="there is none here"):
        Target.of("tensorrt", TensorRT, None)


@pytest.mark.parametrize(
    ("release", "version", "file", "refused"),
    [
        (
            "# R36 (release), REVISION: 4.0",
            "11.4.0.106",
            "/home/me/venv/lib/site-packages/tensorrt/__init__.py",
            "JetPack 6",
        ),
        ("# R36 (release), REVISION: 4.0", "10.3.0", "/usr/lib/python3.10/dist-packages/tensorrt/__init__.py", None),
        ("# R36 (release), REVISION: 4.0", "11.0.0", "/usr/lib/python3.10/dist-packages/tensorrt/__init__.py", None),
        ("# R36 (release), REVISION: 4.0", "10.7.0", "/home/me/venv/lib/site-packages/tensorrt/__init__.py", None),
        ("# R39 (release), REVISION: 2.0", "11.4.0.106", "/home/me/venv/lib/site-packages/tensorrt/__init__.py", None),
        (None, "11.4.0.106", "/home/me/venv/lib/site-packages/tensorrt/__init__.py", None),
        (None, "8.6.1", "/home/me/venv/lib/site-packages/tensorrt/__init__.py", "10.3 or newer"),
        (
            "# R35 (release), REVISION: 4.1",
            "8.5.2.2",
            "/usr/lib/python3.8/dist-packages/tensorrt/__init__.py",
            "10.3 or",
        ),
    ],
)
def test_a_wheel_that_jetpack_6_cannot_run_is_refused(tmp_path, release, version, file, refused):
    if release is not None:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc" / "nv_tegra_release").write_text(f"{release}, GCID: 1, BOARD: generic, EABI: aarch64\n")
    if refused is None:
        check_module("tensorrt", version, Path(file), tmp_path, "aarch64")
    else:
        with pytest.raises(EngineError, match=refused):
            check_module("tensorrt", version, Path(file), tmp_path, "aarch64")


BUILD_ALONE = """
import json, sys, time
from pathlib import Path
from svrt.runtime.engines.files import write_whole
from svrt.runtime.engines.tensorrt_build import Options, Target, build, find_module
graph = Path(sys.argv[1])
trt = find_module("tensorrt-rtx")
started = time.perf_counter()
plan = build(trt, graph, Target.of("tensorrt-rtx", trt, None, "8.6"), Options(max_batch=8))
seconds = time.perf_counter() - started
write_whole(graph.with_suffix(".engine"), plan)
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1e3  # not ru_maxrss: it is inherited
print(json.dumps({"seconds": seconds, "engine_mb": len(plan) / 1e6, "peak_mb": peak}))
"""


@needs_rtx
@pytest.mark.full
@pytest.mark.parametrize("name", ["vgg16", "vit-l"])
def test_full_size_engines_are_built_within_4_gb(tmp_path, name):
    graph = tmp_path / f"{name}.onnx"
    if name == "vgg16":
        write_vgg16(graph, "fp16", size=224)
    else:
        write_encoder(graph, "fp16", VIT_L)
    done = subprocess.run(
        [sys.executable, "-c", BUILD_ALONE, str(graph)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    found = json.loads(done.stdout)
    print("{}: {seconds:.1f} s, engine {engine_mb:.0f} MB, peak memory {peak_mb:.0f} MB".format(name, **found))
    assert graph.with_suffix(".engine").stat().st_size == round(found["engine_mb"] * 1e6)
    assert found["engine_mb"] * 1e6 > graph.with_name(f"{graph.name}.data").stat().st_size
    assert found["peak_mb"] < 4000
