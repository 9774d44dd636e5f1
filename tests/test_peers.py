"""The peers run a bundle's own weights and agree with ours; what cannot run is a row; nothing stays behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import interruptible
from small_system import write_system
from svrt.benchmarks.markdown import NONE
from svrt.benchmarks.peers.__main__ import Ring, report
from svrt.benchmarks.peers.contestants import (
    DECODE,
    DESCRIBE,
    ENCODE,
    FRAME,
    OURS,
    PEERS,
    PREFILL,
    SAMPLE,
    STAGES,
    STEP,
    TIMED,
    VGG,
    Outputs,
    Task,
)
from svrt.benchmarks.peers.duel import FAILED, MEASURED, MISSING, Agreement, Duel, PeerError, Side, agree, child
from svrt.benchmarks.peers.table import HEAD, compared, rows, table
from svrt.errors import ClipError, SvrtError
from svrt.exporter.export import export
from svrt.exporter.recipe import read_recipe
from svrt.models.checkpoint import Checkpoint
from svrt.runtime.engines import trial

BY_NAME = {peer.name: peer for peer in PEERS}
TORCH = BY_NAME["PyTorch float32"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of this module's own: trials of backends are remembered in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def system(tmp_path_factory) -> Path:
    """Checkpoints of a small system, of a seed by which no two tokens are nearly as likely: with another, which of them
    is said depends on the processor."""
    folder = tmp_path_factory.mktemp("system")
    write_system(folder, seed=7)
    return folder


@pytest.fixture(scope="module")
def bundle(system, cache, tmp_path_factory):
    return export(read_recipe(str(system / "small.toml")), tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture(scope="module")
def ring(bundle, clip, tmp_path_factory):
    """What both sides are given is made by one backend: of random weights another one's keyframes give other tokens,
    and for some of those two words are as likely, to the last digit that float32 and q8_0 share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "installed", lambda: {"onnxruntime": ""})
        yield Ring(bundle, clip, tmp_path_factory.mktemp("ring"))


def side(peak=100.0, **samples):
    return Side("float32", "", 1.0, 1.0, peak, samples)


def test_the_ratio_is_the_peers_median_over_ours():
    duel = Duel(VGG, TORCH.name, MEASURED, "", side(frame=[10.0, 11.0, 9.0]), side(400.0, frame=[40.0, 44.0, 36.0]))
    found = compared(duel, FRAME)
    assert found.ratio == pytest.approx(4.0)
    assert 3.2 < found.low < 3.9 and 4.1 < found.high < 4.9  # no draw can go beyond 36 / 11 and 44 / 9
    (line,) = rows([duel])
    cells = dict(zip(HEAD, line, strict=True))
    assert (cells["svrt"], cells["n"], cells["of it"]) == ("10.0", "3", "0.25")
    assert cells["ratio (95 %)"].startswith("4.000 (")


def test_generation_is_told_in_tokens_a_second_and_faster_is_still_above_1():
    fast, slow = side(prefill=[50.0], step=[5.0]), side(prefill=[50.0], step=[10.0])
    prefill, generation = rows([Duel(DECODE, "llama-cpp-python", MEASURED, "", fast, slow)])
    assert generation[:5] == [TIMED[DECODE][STEP], "llama-cpp-python", "200", "100", "2.000 (2.000 to 2.000)"]
    assert prefill[0] == TIMED[DECODE][PREFILL] and prefill[4].startswith("1.000")


def test_a_peer_that_cannot_run_is_a_row_without_figures():
    text = table([Duel(VGG, TORCH.name, MISSING, "torch"), Duel(ENCODE, TORCH.name, FAILED, "no compiler")])
    assert "not installed: torch" in text and "failed: no compiler" in text and "1 of 2 contests failed" in text
    assert not any(cell.replace(".", "").isdigit() for line in rows([Duel(VGG, "x", MISSING, "y")]) for cell in line)


def test_a_text_that_ended_at_once_has_no_speed():
    _, generation = rows([Duel(DECODE, "x", MEASURED, "", side(prefill=[1.0]), side(prefill=[1.0], step=[2.0]))])
    assert generation[-1].startswith("nothing to time") and generation[2] == generation[3] == NONE


def test_agreement_sees_what_differs():
    ours = Outputs({"features": np.eye(2, dtype=np.float32)}, [1, 5, 9], None, " Made it. ")
    other = Outputs({"features": np.array([[1, 0], [1, 1]], np.float32)}, [1, 5, 8], [3], None)
    found = agree(ours, other, lambda ids: f"token {ids}")
    assert found.cosine == pytest.approx(2**-0.5) and found.keyframes == (2, 3) and found.same_text is False
    assert agree(ours, ours, str) == Agreement(1.0, (3, 3), True, ("Made it.", "Made it."))
    assert agree(ours, Outputs(), str) == Agreement()


def test_the_bundles_weights_are_the_checkpoints_they_came_from(bundle, system, tmp_path):
    from safetensors.numpy import load_file
    from svrt.benchmarks.peers.weights import write_vision

    write_vision(bundle, tmp_path)
    found = load_file(tmp_path / "encoder" / "model.safetensors")
    encoder, vgg = Checkpoint(system / "encoder"), Checkpoint(system / "sampler")
    expected = {name for name in encoder.names if name.startswith("encoder.")}
    assert found.keys() == expected
    for name in expected:  # the small system's graphs are float16
        np.testing.assert_allclose(found[name], encoder.float32(name), rtol=1.1e-3, atol=1e-6, err_msg=name)
    images = load_file(tmp_path / "vgg16.safetensors")
    assert len(images) == 26
    for name, array in images.items():
        np.testing.assert_allclose(array, vgg.float32(name), rtol=6e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("peer", [TORCH, BY_NAME["ONNX Runtime, stock export"]], ids=lambda peer: peer.name)
@pytest.mark.parametrize("stage", [VGG, ENCODE])
def test_a_peers_features_and_video_tokens_are_ours(ring, peer, stage):
    duel = ring.duel(peer, stage, 2)
    assert duel.state == MEASURED, duel.why
    assert duel.agreement.cosine > 0.999
    for one in (duel.ours, duel.theirs):
        (samples,) = one.samples.values()
        assert len(samples) == 2 and min(samples) > 0 and one.peak_mib > 30


def test_scikit_learn_samples_by_the_same_method(ring, bundle):
    duel = ring.duel(TORCH, SAMPLE, 1)
    shared, count = duel.agreement.keyframes
    assert count == bundle.manifest.sampler.keyframes and shared >= count // 2
    assert set(duel.ours.samples) == {"rest", "vgg16"}


def test_a_text_that_ends_in_the_middle_of_a_character_ends_as_the_decoder_ends_it(ring, monkeypatch):
    monkeypatch.setattr(ring, "_vocabulary", SimpleNamespace(detokenize=lambda ids: bytes(ids)))
    assert ring._text(list("goal é".encode()[:-1])) == "goal \ufffd"


def test_transformers_says_what_we_say(ring):
    duel = ring.duel(TORCH, DECODE, 1)
    ours, theirs = duel.agreement.texts
    assert theirs and duel.agreement.same_text, (ours, theirs)
    assert set(duel.theirs.samples) == {"prefill", "step"}


def test_the_whole_in_pytorch_describes_the_clip(ring, bundle, clip):
    duel = ring.duel(TORCH, DESCRIBE, 1)
    assert duel.state == MEASURED, duel.why
    assert duel.theirs.samples["first token"][0] < duel.theirs.samples["describe"][0]
    assert duel.agreement.keyframes[1] == bundle.manifest.sampler.keyframes
    written = report(bundle, clip, 1, [duel], {})
    assert written["duels"][0]["ours"]["samples"]["describe"] == duel.ours.samples["describe"]


@pytest.mark.parametrize("name", ["llama-cpp-python", "bare llama_decode loop"])
def test_llama_cpp_is_measured_both_ways(ring, name):
    duel = ring.duel(BY_NAME[name], DECODE, 2)
    assert duel.state == MEASURED, duel.why
    assert len(duel.theirs.samples["prefill"]) == 2
    assert duel.agreement.same_text is (True if "bare" in name else None)


def test_products_in_the_encoders_shapes_say_what_the_machine_allows(ring):
    duel = ring.duel(BY_NAME["products at PyTorch's bfloat16 rate"], ENCODE, 1)
    assert duel.state == MEASURED, duel.why
    assert "64 rows" not in duel.theirs.note and "96x288" in duel.theirs.note  # 8 x 4 x 4 tokens of width 96
    assert "128 rows" in duel.theirs.note


def test_a_package_that_is_missing_is_a_row(bundle, clip, tmp_path, monkeypatch):
    hidden = tmp_path / "hidden"
    (hidden / "torch").mkdir(parents=True)
    (hidden / "torch" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')"
    )
    monkeypatch.setenv("PYTHONPATH", str(hidden))
    (tmp_path / "ring").mkdir()
    ring = Ring(bundle, clip, tmp_path / "ring")
    for peer, stage in ((TORCH, VGG), (BY_NAME["OpenVINO, stock export"], ENCODE)):
        duel = ring.duel(peer, stage, 1)
        assert (duel.state, duel.why) == (MISSING, "torch")


def test_a_peer_that_fails_is_a_row_and_says_why(ring):
    task = Task("bare llama_decode loop", DECODE, ring._task.bundle, ring._task.clip, str(ring._folder / "nowhere"))
    with child(task, ring._folder / "x.npz") as process, pytest.raises(PeerError, match=r"No such file.*nowhere"):
        process.expect("ready")


def test_a_peer_that_is_killed_is_a_row_and_says_so(ring):
    task = Task(OURS, VGG, ring._task.bundle, ring._task.clip, ring._task.folder)
    with child(task, ring._folder / "x.npz") as process:
        process.process.kill()
        with pytest.raises(PeerError, match="svrt was killed by signal 9"):
            process.expect("ready")


def test_a_disk_too_small_for_a_checkpoint_is_a_row(ring, monkeypatch):
    def refuse(task, what):
        raise SvrtError(f"{what}: too small")

    monkeypatch.setattr("svrt.benchmarks.peers.__main__.prepare", refuse)
    monkeypatch.setattr(ring, "_ready", {})
    assert ring.duel(TORCH, DECODE, 1) == Duel(DECODE, TORCH.name, FAILED, "vision: too small")


def test_a_clip_too_short_to_choose_from_is_refused(bundle, tmp_path):
    from conftest import moving_ball, write_video

    short = write_video(tmp_path / "short.mp4", moving_ball(5))
    with pytest.raises(ClipError, match="5 frames"):
        Ring(bundle, short, tmp_path)


def alive(pid):
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_process_that_does_not_answer_is_gone_after_the_block(ring):
    task = Task(OURS, VGG, ring._task.bundle, ring._task.clip, ring._task.folder)
    with pytest.raises(KeyboardInterrupt), child(task, ring._folder / "x.npz") as process:
        pid = process.process.pid
        assert alive(pid)
        raise KeyboardInterrupt
    assert not alive(pid)


def workers(parent):
    """Processes that a process started and that are contestants."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status, command = (folder / "stat").read_text(), (folder / "cmdline").read_text()
        except OSError:
            continue
        if int(status.rpartition(")")[2].split()[1]) == parent and "peers.worker" in command:
            found.append(int(folder.name))
    return found


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_nothing_stays_behind_when_the_table_is_given_up(bundle, clip, tmp_path, how):
    command = [sys.executable, "-m", "svrt.benchmarks.peers", "--bundle", str(bundle.path), "--clip", str(clip)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with interruptible():
        running = subprocess.Popen(
            [*command, "--only", VGG, "--against", "float32"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=environment,
        )
    try:
        deadline = time.monotonic() + 60
        while not (started := workers(running.pid)):
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(how)
        status = running.wait(timeout=30)
    finally:
        running.kill()
        running.wait()
    while any(alive(pid) for pid in started):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.05)
    assert status == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[how]
    if how != signal.SIGKILL:
        assert not list(tmp_path.iterdir()), "the folder of weights is left behind"


def test_every_stage_has_a_pytorch_peer_in_both_types():
    for name in ("PyTorch float32", "PyTorch bfloat16"):
        assert set(BY_NAME[name].stages) >= set(STAGES) - {SAMPLE}


def test_a_whole_name_is_of_one_peer_and_a_part_of_all_that_have_it():
    from svrt.benchmarks.peers.__main__ import PEERS, _wanted

    def named(*against):
        return [peer.name for peer in PEERS if _wanted(peer, against)]

    assert named("pytorch bfloat16") == ["PyTorch bfloat16"]
    assert named("bfloat16", "llama_decode") == [
        name for name in named() if "bfloat16" in name or "llama_decode" in name
    ]
    assert named() == [peer.name for peer in PEERS]
