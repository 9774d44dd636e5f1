"""SV3.3B at its own size: exported, verified and run on the processor; ViT-L on real keyframes."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import psutil
import pytest
from svrt.bundle import Bundle
from svrt.exporter.parity import compare
from svrt.kernels.preprocess import Normalisation, normalise
from svrt.models import vjepa2
from svrt.models.checkpoint import Checkpoint
from svrt.runtime import engines
from svrt.runtime.pipeline import Pipeline
from svrt.runtime.sampler import Candidates
from svrt.runtime.video import read_candidates
from test_graphs import VIT_L, hidden_state, make_encoder
from torch import from_numpy

pytestmark = pytest.mark.full
SAMPLE = Path(str(files("svrt.models.pocket") / "sample" / "make.mp4"))
MEMORY_LIMIT = 4e9  # bytes, of all processes of the export
DISK = 20e9  # bytes: 17.5 GB, and room to move


def clips():
    """The sample clip, and those in the folder that SVRT_TEST_CLIPS names."""
    folder = os.environ.get("SVRT_TEST_CLIPS")
    return [SAMPLE, *(sorted(Path(folder).glob("*.mp4")) if folder else [])]


def run_watched(command):
    """Run a command; its output, seconds, and the most memory that it and its children had at once."""
    started = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = 0

    def watch():
        nonlocal peak
        while child.poll() is None:
            held = 0
            try:
                parent = psutil.Process(child.pid)
                for process in (parent, *parent.children(recursive=True)):
                    held += process.memory_info().rss
            except psutil.NoSuchProcess:
                pass
            peak = max(peak, held)
            time.sleep(0.05)

    thread = threading.Thread(target=watch)
    thread.start()
    output, errors = child.communicate()
    thread.join()
    assert child.returncode == 0, errors
    return output, time.monotonic() - started, peak


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    if shutil.disk_usage(folder).free < DISK:
        pytest.skip("a full-size export needs 20 GB of disk")
    out = folder / "b"
    command = [sys.executable, "-m", "svrt", "export", "sv3.3b", "--random-weights", "--out", str(out)]
    yield out, run_watched(command)
    shutil.rmtree(folder)


def test_the_export_is_whole_and_stays_within_its_memory(full_size):
    out, (_, seconds, peak) = full_size
    bundle = Bundle.load(out)
    size = sum(record.bytes for record in bundle.manifest.files.values())
    print(f"export {seconds:.0f} s, peak memory {peak / 1e9:.2f} GB, bundle {size / 1e9:.2f} GB")
    assert peak <= MEMORY_LIMIT
    assert bundle.manifest.decoder.width == 3072
    assert bundle.manifest.files["encoder.onnx"].inputs[0].shape == [1, 16, 3, 256, 256]
    parity = bundle.manifest.parity
    assert min(parity[name].cosine for name in ("vgg16.onnx", "encoder.onnx", "merged.gguf")) >= 0.9995


def test_it_describes_a_clip_end_to_end(full_size):
    out, _ = full_size
    command = [sys.executable, "-m", "svrt", "describe", str(SAMPLE), "--bundle", str(out), "--json"]
    output, seconds, peak = run_watched(command)
    found = json.loads(output)
    print(f"describe {seconds:.1f} s, peak memory {peak / 1e9:.2f} GB, {found['timings_ms']}")
    assert len(found["keyframes"]) == 16 and found["tokens"]["video"] == 128 and found["text"]


@pytest.fixture(scope="module")
def vit_l(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit-l")
    yield folder, make_encoder(folder, **VIT_L)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def keyframes(pocket):
    """Keyframes of each clip as ViT-L reads them, float32 [1, 16, 3, 256, 256]."""
    found = {}
    with Pipeline(pocket, "onnxruntime") as pipeline:
        spec = replace(pocket.manifest.encoder, size=256, resize=292, fit="crop")
        for clip in clips():
            candidates, _ = read_candidates(clip, 64, lambda: Candidates(pocket.manifest.sampler, spec))
            views = np.stack([candidates.view(pick) for pick in pipeline.sampler.pick(candidates)])
            found[clip.name] = normalise(views, Normalisation("rgb", spec.scale, spec.mean, spec.std))[None]
    return found


@pytest.mark.parametrize(("precision", "error_limit", "cosine_limit"), [("fp32", 1e-5, 0.99999), ("fp16", 1, 0.9995)])
def test_vit_l_equals_transformers_on_real_keyframes(vit_l, keyframes, tmp_path, precision, error_limit, cosine_limit):
    folder, model = vit_l
    path = tmp_path / "encoder.onnx"
    vjepa2.write(path, Checkpoint(folder), precision=precision)
    engine = engines.load(path, "onnxruntime", precision)
    for name, pixels in keyframes.items():
        tokens = engine({"pixel_values_videos": pixels})["video_tokens"]
        error, cosine = compare(tokens, hidden_state(model, from_numpy(pixels)))
        print(f"{precision} {name}: relative error {error:.1e}, cosine {cosine:.7f}")
        assert error <= error_limit and cosine >= cosine_limit
