"""An export that is interrupted, killed or starved of disk: nothing half, and nothing done twice."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import interruptible
from small_system import write_system
from svrt.bundle import Bundle
from svrt.errors import BundleError, OutputError, RecipeError
from svrt.exporter import parts
from svrt.exporter.export import export
from svrt.exporter.recipe import read_recipe
from svrt.exporter.stages import Stages, key_of

WORK = ["vgg16", "encoder", "parity", "merge", "quantize", "decoder parity"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return write_system(tmp_path_factory.mktemp("system"))


class Journal:
    """A report that notes which stages were done and which were kept, and can stop an export as one begins."""

    def __init__(self, stop_at: str | None = None, error: Callable[[], BaseException] = KeyboardInterrupt) -> None:
        self.began, self.ended, self.stop_at, self.error = [], [], stop_at, error

    def __call__(self, stage: str, done: int, total: int) -> None:
        if done >= total:
            self.ended.append(stage)
        elif stage not in self.began:
            self.began.append(stage)
            if stage == self.stop_at:
                raise self.error()


def same_files(a: Path, b: Path) -> bool:
    names = {p.relative_to(a).as_posix() for p in a.rglob("*")}
    return names == {p.relative_to(b).as_posix() for p in b.rglob("*")} and all(
        (a / name).read_bytes() == (b / name).read_bytes() for name in names if (a / name).is_file()
    )


@pytest.mark.parametrize("stop_at", [*WORK, "manifest"])
def test_an_interrupted_export_goes_on_from_the_last_whole_stage(recipe, tmp_path, stop_at):
    with pytest.raises(KeyboardInterrupt):
        export(read_recipe(str(recipe)), tmp_path / "b", Journal(stop_at))
    assert not (tmp_path / "b").exists()
    second = Journal()
    export(read_recipe(str(recipe)), tmp_path / "b", second)
    kept = WORK[: WORK.index(stop_at)] if stop_at in WORK else WORK
    again = [stage for stage in WORK if stage not in kept]
    assert [stage for stage in second.began if stage in WORK] == again
    assert Counter(second.ended) == Counter(
        [*(s for s in WORK if s != "merge" or "decoder parity" in again), "sources", "manifest"]
    )
    Bundle.load(tmp_path / "b")
    assert os.listdir(tmp_path) == ["b"]
    export(read_recipe(str(recipe)), tmp_path / "straight")
    assert same_files(tmp_path / "b", tmp_path / "straight")


def test_what_changed_since_the_interruption_is_done_again(recipe, tmp_path):
    system = tmp_path / "system"
    shutil.copytree(recipe.parent, system)
    with pytest.raises(KeyboardInterrupt):
        export(read_recipe(str(system / "small.toml")), tmp_path / "b", Journal("decoder parity"))
    projector = Path("projector", "model.safetensors")
    data = bytearray((system / projector).read_bytes())
    data[-3] ^= 1
    (system / projector).write_bytes(data)
    second = Journal()
    export(read_recipe(str(system / "small.toml")).with_quantization("f16"), tmp_path / "b", second)
    assert [s for s in second.began if s in WORK] == ["encoder", "parity", "quantize", "decoder parity"]
    Bundle.load(tmp_path / "b")


def test_a_stored_file_that_was_damaged_is_made_again(recipe, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        export(read_recipe(str(recipe)), tmp_path / "b", Journal("merge"))
    weights = tmp_path / ".b.partial" / "bundle" / "encoder.onnx.data"
    data = bytearray(weights.read_bytes())
    data[4096] ^= 1
    weights.write_bytes(data)
    second = Journal()
    export(read_recipe(str(recipe)), tmp_path / "b", second)
    assert [s for s in second.began if s in WORK] == ["encoder", "merge", "quantize", "decoder parity"]
    Bundle.load(tmp_path / "b")


def test_a_journal_that_was_cut_off_only_costs_time(recipe, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        export(read_recipe(str(recipe)), tmp_path / "b", Journal("merge"))
    journal = tmp_path / ".b.partial" / "work" / "stages.json"
    journal.write_text(journal.read_text()[:-20])
    second = Journal()
    export(read_recipe(str(recipe)), tmp_path / "b", second)
    assert [s for s in second.began if s in WORK] == WORK


def test_an_error_leaves_nothing_behind(recipe, tmp_path):
    with pytest.raises(OutputError, match="No space left"):
        export(
            read_recipe(str(recipe)),
            tmp_path / "b",
            Journal("quantize", lambda: OSError(28, "No space left on device")),
        )
    assert os.listdir(tmp_path) == []


def test_too_small_a_disk_is_told_before_any_work(recipe, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(parts.shutil, "disk_usage", lambda _: usage._replace(free=50_000_000))
    journal = Journal()
    with pytest.raises(OutputError, match=r"needs 0\.\d GB of disk there and 0\.1 GB are free"):
        export(read_recipe(str(recipe)), tmp_path / "b", journal)
    assert journal.began == ["sources"]
    assert os.listdir(tmp_path) == []


def test_full_size_needs_are_known_without_a_byte_written(tmp_path, monkeypatch):
    """LLaMA-3.2-3B drawn, merged in float16 and quantized, ViT-L and VGG-16 drawn and written: 17 to 18 GB."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(parts.shutil, "disk_usage", lambda _: usage._replace(free=10**9))
    with pytest.raises(OutputError, match=r"needs 1[78]\.\d GB of disk"):
        export(read_recipe("sv3.3b").with_random_weights(0), tmp_path / "b")
    assert os.listdir(tmp_path) == []


def test_a_write_that_fails_midway_is_one_line_and_leaves_nothing(recipe, tmp_path):
    """A limit on the size of files stands in for a disk that fills while the encoder's weights are written."""
    code = "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000));"
    code += "sys.argv = ['svrt', 'export', sys.argv[1], '--out', sys.argv[2]]; from svrt.cli import main; main()"
    command = [sys.executable, "-c", code, str(recipe), str(tmp_path / "b")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("svrt: error: "), done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def test_ctrl_c_says_how_to_go_on(recipe, tmp_path):
    child = _start(recipe, tmp_path / "b")
    _wait_for(tmp_path / ".b.partial" / "work" / "stages.json", child)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Traceback" not in errors
    assert f"the same command goes on from here, or remove {tmp_path / '.b.partial'}" in errors
    assert not (tmp_path / "b").exists()
    again = subprocess.run(_command(recipe, tmp_path / "b"), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "(kept from before)" in again.stderr
    assert os.listdir(tmp_path) == ["b"]


@pytest.mark.parametrize("kills", [6, pytest.param(50, marks=pytest.mark.full)])
def test_kill_9_at_any_moment_leaves_no_bundle_or_a_whole_one(recipe, tmp_path, kills):
    out, moments = tmp_path / "b", random.Random(kills)
    started = time.monotonic()
    assert subprocess.run(_command(recipe, tmp_path / "straight"), capture_output=True).returncode == 0
    whole = time.monotonic() - started
    seen = Counter()
    for number in range(kills):
        if number % 2:  # every other time from the beginning, every other time over what the last kill left
            shutil.rmtree(tmp_path / ".b.partial", ignore_errors=True)
            shutil.rmtree(out, ignore_errors=True)
        child = _start(recipe, out)
        time.sleep(moments.uniform(0, whole))
        child.kill()
        child.communicate()
        try:
            Bundle.load(out)
            seen["whole"] += 1
        except BundleError:
            assert not out.exists()
            seen["absent"] += 1
    print(f"{kills} kills within {whole:.1f} s: {dict(seen)}")
    done = subprocess.run(_command(recipe, out), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    Bundle.load(out)
    assert same_files(out, tmp_path / "straight")
    assert sorted(os.listdir(tmp_path)) == ["b", "straight"]


def test_sources_that_were_not_given_are_named_with_their_flags(tmp_path):
    with pytest.raises(
        RecipeError, match=r"no source for sampler, .*adapter; give --sampler timm/vgg16.tv_in1k .*--adapter PATH"
    ):
        export(read_recipe("sv3.3b"), tmp_path / "b")
    assert os.listdir(tmp_path) == []


def test_files_the_journal_does_not_name_are_cleared(tmp_path):
    bundle = tmp_path / "p" / "bundle"
    bundle.mkdir(parents=True)
    (bundle / "stray").write_text("x")
    (tmp_path / "p" / "old-layout").mkdir()
    (tmp_path / "p" / "old-layout" / "x").write_text("x")
    stages = Stages(bundle, lambda *_: None)
    file = bundle / "a"
    stages.run("one", key_of(1), lambda _: file.write_text("a") and None, lambda: [file])
    (bundle / "b.part").write_text("half")
    again = Stages(bundle, lambda *_: None)
    assert sorted(os.listdir(bundle)) == ["a"]
    assert sorted(os.listdir(tmp_path / "p")) == ["bundle", "work"]
    assert again.kept("one", key_of(1)) and not again.kept("one", key_of(2))


def _command(recipe: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "svrt", "export", str(recipe), "--out", str(out)]


def _start(recipe: Path, out: Path) -> subprocess.Popen:
    with interruptible():
        return subprocess.Popen(_command(recipe, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _wait_for(path: Path, child: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.exists(), child.communicate()
