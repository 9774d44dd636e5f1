"""The commands as a user types them, in processes of their own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import moving_ball, write_video
from svrt import cli
from svrt.bundle import Bundle
from svrt.errors import DecoderError
from svrt.exporter.parity import sample_clip
from svrt.runtime.engines import BACKENDS
from test_video import BAD_CLIPS, bad_clip
from typer.testing import CliRunner

KEYS = {"clip", "text", "confidence", "keyframes", "timings_ms", "tokens", "bundle", "backends"}
STAGES = ("decode", "sample", "encode", "prefill", "generate")


def svrt(*arguments, **environment):
    command = [sys.executable, "-m", "svrt", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=300)


def refused(done):
    """Assert one clear line on stderr and exit code 2; returns the line."""
    assert done.returncode == 2, done
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("svrt: error: "), done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    return lines[0]


def test_describe_gives_json_with_16_keyframes_in_time_order(pocket, clip):
    done = svrt("describe", clip, sample_clip(), "--bundle", pocket.path, "--json")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [f["clip"] for f in found] == [str(clip), str(sample_clip())]
    for description in found:
        assert set(description) == KEYS
        times = [k["time_s"] for k in description["keyframes"]]
        assert len(times) == 16 and sorted(set(times)) == times
        assert description["text"].strip()
        assert description["bundle"] == {"name": "pocket", "sha256": pocket.sha256}
        assert description["tokens"]["video"] == 32 and description["tokens"]["generated"] > 0
        assert 1 / 3 <= description["confidence"] <= 1  # one of three answers
        assert set(description["timings_ms"]) == {*STAGES, "total"}
        assert sum(description["timings_ms"][s] for s in STAGES) <= description["timings_ms"]["total"] * 1.01
        assert set(description["backends"]) == {"sampler", "encoder", "decoder"}


def test_the_same_clip_twice_gives_the_same_keyframes_and_text(pocket, tmp_path):
    runs = []
    for name in ("a.png", "b.png"):
        done = svrt("describe", sample_clip(), "--bundle", pocket.path, "--keyframes", tmp_path / name)
        assert done.returncode == 0, done.stderr
        runs.append((done.stdout, (tmp_path / name).read_bytes()))
    assert runs[0] == runs[1]
    assert runs[0][0].strip()
    sheet = cv2.imread(str(tmp_path / "a.png"))
    assert sheet.shape[1] > 8 * 190 and sheet.std() > 20
    assert sorted(os.listdir(tmp_path)) == ["a.png", "b.png"]


def test_python_gives_what_the_command_gives(pocket):
    import svrt as package

    done = svrt("describe", sample_clip(), "--bundle", pocket.path, "--json")
    with package.load(pocket.path) as model:
        pieces = []
        found = model.describe(sample_clip(), on_text=pieces.append)
        again = model.describe(sample_clip())
    assert found.text == again.text == "".join(pieces).strip() == json.loads(done.stdout)["text"]
    assert found.keyframes == again.keyframes
    assert len(found.thumbnails) == 16


def test_max_tokens_bounds_the_text(pocket, clip):
    done = svrt("describe", clip, "--bundle", pocket.path, "--json", "--max-tokens", 3)
    assert json.loads(done.stdout)["tokens"]["generated"] <= 3


@pytest.mark.parametrize("kind", BAD_CLIPS)
def test_a_bad_clip_is_one_line_and_exit_code_2(pocket, tmp_path, kind):
    path = bad_clip(tmp_path, kind)
    assert str(path) in refused(svrt("describe", path, "--bundle", pocket.path, "--max-tokens", 1))


def test_one_bad_clip_does_not_stop_the_others(pocket, clip, tmp_path):
    absent = tmp_path / "absent.mp4"
    done = svrt("describe", clip, absent, clip, "--bundle", pocket.path, "--json", "--max-tokens", 4)
    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == 2
    assert str(absent) in done.stderr and "1 of 3 clips" in done.stderr


def test_a_damaged_clip_that_still_yields_frames_is_described_with_a_warning(pocket, tmp_path):
    path = write_video(tmp_path / "x.mkv", moving_ball(60))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    done = svrt("describe", path, "--bundle", pocket.path, "--json", "--max-tokens", 4)
    assert done.returncode == 0
    assert json.loads(done.stdout)["text"]
    assert f"svrt: warning: {path}: damaged" in done.stderr


@pytest.mark.parametrize("file", ["bundle.json", "vgg16.onnx", "encoder.onnx", "decoder.gguf"])
def test_a_corrupted_bundle_is_named_and_not_loaded(pocket, clip, tmp_path, file):
    copy = tmp_path / "copy"
    shutil.copytree(pocket.path, copy)
    data = bytearray((copy / file).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 8] = b"\x00\xff" * 4
    (copy / file).write_bytes(data)
    assert str(copy / file) in refused(svrt("describe", clip, "--bundle", copy))
    assert str(copy / file) in refused(svrt("verify", copy))


def test_verify_says_whole(pocket):
    done = svrt("verify", pocket.path)
    assert done.returncode == 0 and "whole" in done.stdout and pocket.sha256 in done.stdout


def test_wrong_names_and_places_are_refused_before_any_work(pocket, clip, tmp_path):
    nowhere = tmp_path / "absent" / "x.png"
    assert str(nowhere) in refused(svrt("describe", clip, "--bundle", pocket.path, "--keyframes", nowhere))
    assert "x.gif" in refused(svrt("describe", clip, "--bundle", pocket.path, "--keyframes", tmp_path / "x.gif"))
    picture = tmp_path / "x.png"
    assert "one clip" in refused(svrt("describe", clip, clip, "--bundle", pocket.path, "--keyframes", picture))
    assert "'cuda'" in refused(svrt("describe", clip, "--bundle", pocket.path, "--backend", "cuda"))
    assert "not a bundle" in refused(svrt("describe", clip, "--bundle", tmp_path))
    long = tmp_path / ("n" * 300 + ".png")
    assert "too long" in refused(svrt("describe", clip, "--bundle", pocket.path, "--keyframes", long))
    (tmp_path / "bad.toml").write_text("[sampler]\nlvel = 1\n")
    assert "lvel" in refused(svrt("export", tmp_path / "bad.toml", "--out", tmp_path / "b"))
    assert "/proc/b" in refused(svrt("export", "--out", "/proc/b"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.jpg").touch()
    assert "full" in refused(svrt("export", "--out", tmp_path / "full"))
    assert sorted(os.listdir(tmp_path)) == ["bad.toml", "full"]


def test_a_full_disk_behind_the_output_is_one_line(pocket, clip):
    command = [sys.executable, "-m", "svrt", "describe", str(clip), "--bundle", str(pocket.path), "--json"]
    command += ["--backend", "onnxruntime"]  # nothing to try first, and to tell of
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["svrt: error: cannot write the result: No space left on device"]


def test_a_terminal_without_utf8_still_gets_its_json(pocket, clip, tmp_path):
    path = tmp_path / "wurf über.mp4"
    path.write_bytes(clip.read_bytes())
    done = svrt("describe", path, "--bundle", pocket.path, "--json", "--max-tokens", 2, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and json.loads(done.stdout)["clip"] == str(path)


@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["describe", "absent.mp4"], 2)])
def test_the_process_ends_with_the_command_and_loses_no_output(arguments, code):
    """A library's thread that is still at work does not hold it, and what was printed into a pipe arrives."""
    lines = "import sys, threading, time; from svrt.cli import main; sys.argv = ['svrt', *sys.argv[1:]]"
    lines += "; threading.Thread(target=time.sleep, args=(300,)).start(); print('before'); main()"
    done = subprocess.run([sys.executable, "-c", lines, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert done.stdout.startswith("before\n")
    assert "svrt 0." in done.stdout if code == 0 else "absent.mp4" in done.stderr


@pytest.mark.parametrize("set_by_the_user", [None, "2"])
def test_describe_leaves_the_processors_to_the_engines(set_by_the_user):
    """NumPy's threads would spin beside them; it reads the variable once, while it is imported."""
    lines = "import os, sys; from svrt.cli import app; sys.argv = ['svrt', 'describe', 'absent.mp4']"
    lines += "; early = 'numpy' in sys.modules; app(standalone_mode=False)"
    lines = f"try:\n {lines}\nfinally: print(early, 'numpy' in sys.modules, os.environ['OPENBLAS_NUM_THREADS'])"
    variables = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    variables |= {"OPENBLAS_NUM_THREADS": set_by_the_user} if set_by_the_user else {}
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=60, env=variables)
    assert done.stdout.split() == ["False", "True", set_by_the_user or "1"]


def test_version_and_help():
    assert svrt("--version").stdout.startswith("svrt 0.")
    for command in ("export", "describe", "verify", "inspect", "plan"):
        done = svrt(command, "--help")
        assert done.returncode == 0 and f"svrt {command}" in done.stdout.split("Example")[1]
    assert svrt("describe").returncode == 2


def test_describe_loads_no_training_or_export_library(pocket, clip):
    command = [sys.executable, "-X", "importtime", "-m", "svrt", "describe", str(clip), "--bundle", str(pocket.path)]
    done = subprocess.run([*command, "--max-tokens", "2"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert {"numpy", "cv2", "llama_cpp"} <= loaded
    assert {"onnxruntime", "openvino"} & loaded
    assert "openvino.tools.ovc." not in done.stderr  # nor anything of the converter of models
    assert not loaded & {"torch", "transformers", "onnx", "sklearn", "peft", "gguf", "safetensors", "scipy", "pywt"}


def test_a_bundle_is_inspected_and_planned_for_a_board(pocket):
    seen = svrt("inspect", pocket.path)
    assert seen.returncode == 0 and "decoder.gguf" in seen.stdout and seen.stderr == ""
    values = json.loads(svrt("inspect", pocket.path, "--json").stdout)
    assert pocket.sha256 in json.dumps(values)
    one = svrt("plan", pocket.path, "--device", "orin-nano-8gb")
    assert one.returncode == 0 and "Assumptions" in one.stdout, one.stderr
    every = json.loads(svrt("plan", pocket.path, "--json").stdout)
    assert len(every) > 5
    unknown = svrt("plan", pocket.path, "--device", "orin-nano")
    assert unknown.returncode == 2 and "orin-nano-8gb" in unknown.stderr and len(unknown.stderr.splitlines()) == 1


def test_a_backend_that_cannot_run_here_is_one_line(pocket, clip):
    for backend in ("tensorrt", "tensorrt-rtx", "abacus"):
        done = svrt("describe", clip, "--bundle", pocket.path, "--backend", backend)
        assert done.returncode == 2 and backend in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_exporting_again_gives_the_same_bytes(pocket, tmp_path):
    done = svrt("export", "pocket", "--out", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    assert "decoder.gguf" in done.stdout
    assert Bundle.load(tmp_path / "again").manifest.files == pocket.manifest.files


def test_the_built_in_bundle_is_exported_once_and_mended_when_damaged(clip, tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    first = svrt("describe", clip, "--json", "--max-tokens", 4, **environment)
    assert first.returncode == 0, first.stderr
    assert "exporting the built-in bundle" in first.stderr
    second = svrt("describe", clip, "--json", "--max-tokens", 4, **environment)
    assert second.stderr == ""
    assert json.loads(first.stdout)["text"] == json.loads(second.stdout)["text"]
    (bundle,) = (tmp_path / "svrt").glob("pocket-*")
    (bundle / "bundle.json").unlink()
    (trap := tmp_path / "trap").mkdir()
    (trap / "numpy.py").write_text("raise SystemExit('imported from the working folder')")
    program = Path(sys.executable).with_name("svrt")
    command = [program, "describe", str(clip), "--json", "--max-tokens", "4"]
    done = subprocess.run(command, cwd=trap, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with (bundle / "decoder.gguf").open("r+b") as file:
        file.truncate(1000)
    third = svrt("describe", clip, "--json", "--max-tokens", 4, **environment)
    assert third.returncode == 0 and json.loads(third.stdout)["text"] == json.loads(first.stdout)["text"]
    blocked = tmp_path / "file"
    blocked.touch()
    assert str(blocked) in refused(svrt("describe", clip, XDG_CACHE_HOME=str(blocked)))


def test_a_log_on_a_full_disk_costs_no_description(pocket):
    command = [sys.executable, "-m", "svrt", "describe", sample_clip(), sample_clip(), "--bundle", pocket.path]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*map(str, command), "--max-tokens", "2"], stdout=subprocess.PIPE, stderr=full, text=True)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)


def peak_memory(*arguments):
    """Peak resident memory of one command, bytes."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    command = [sys.executable, "-c", code, sys.executable, "-m", "svrt", *map(str, arguments)]
    return int(subprocess.run(command, capture_output=True, check=True).stdout) * 1024


def test_peak_memory_does_not_grow_with_the_clip(pocket, tmp_path):
    """Ten minutes against five seconds, both 30 frames a second."""
    frames = list(moving_ball(150, 320, 240))
    short = write_video(tmp_path / "short.mp4", frames)
    long = write_video(tmp_path / "long.mp4", (frames[i % 150] for i in range(18_000)))
    options = ("--bundle", pocket.path, "--json", "--max-tokens", 4)
    peaks = [peak_memory("describe", path, *options) for path in (short, long)]
    print(f"peak memory: 5 s {peaks[0] / 1e6:.0f} MB, 10 min {peaks[1] / 1e6:.0f} MB")
    assert peaks[1] <= peaks[0] * 1.1


def test_large_frames_do_not_pile_up(pocket, tmp_path):
    """4K frames: 64 of them in BGR would be 1.6 GB."""
    path = write_video(tmp_path / "4k.mp4", (np.full((2160, 3840, 3), i, np.uint8) for i in range(64)))
    assert peak_memory("describe", path, "--bundle", pocket.path, "--json", "--max-tokens", 4) < 1.2e9


@pytest.mark.parametrize("command", [["describe"], ["eval"], ["bench"], ["bench", "growth"]])
def test_help_names_every_backend(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    said = CliRunner().invoke(cli.app, [*command, "--help"]).stdout
    assert f"auto, {', '.join(BACKENDS)}." in said


def test_a_text_that_breaks_off_does_not_lead_the_next(capsys):
    printer = cli._Printer(None, as_json=False, named=True)
    printer.show(Path("a.mp4"), "Mad")
    assert not printer.finish(Path("a.mp4"), DecoderError("llama.cpp failed"))
    printer.show(Path("b.mp4"), "Missed")
    assert capsys.readouterr().out == "a.mp4: Mad\nb.mp4: Missed"
