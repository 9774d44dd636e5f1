"""This machine's own rates, and a bundle's own times on it: `python -m svrt.exporter.measure BUNDLE GEMM.onnx`.

Runs as a process of its own, so that its peak of memory is that of describing a clip and nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from ..bundle import Bundle
from ..errors import EngineError, SvrtError
from ..records import from_json
from ..runtime.engines import load
from ..runtime.pipeline import Pipeline
from ..runtime.processors import usable_processors
from ..runtime.sampler import Candidates
from ..runtime.video import read_candidates

RUNS = 3  # after one that warms up
BACKEND = "onnxruntime"
GEMM_SIDE = 1536  # rows and columns of the matrices multiplied
ATTEMPTS = 8  # a run, of which the best counts: a rate is what the machine can do, not what it does while shared
COPIED = 1 << 27  # bytes of each of the two arrays copied: beyond a processor's cache, and no burden to a small board


@dataclass(frozen=True)
class Measurement:
    """What was measured. Rates are the best of all attempts; `stages_ms` hold one number a run, in milliseconds.

    `base_bytes` is resident memory with the libraries loaded and no bundle, `peak_bytes` at the first run's peak;
    `load` is the machine's load average of the last minute before.
    """

    threads: int
    load: float
    fp32: float  # operations a second
    bandwidth: float  # bytes a second, read and written
    candidates: int
    generated: int
    video_tokens: int
    size: list[int]  # of the clip's frames: width, height
    stages_ms: dict[str, list[float]]
    backends: dict[str, str]
    base_bytes: int
    peak_bytes: int


def measure(bundle: Path) -> Measurement:
    """Measure this machine and the bundle on its processor, with the sample clip.

    Raises `SvrtError` with the child's reason where it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        gemm = Path(folder) / "gemm.onnx"
        _write_gemm(gemm)
        done = subprocess.run(
            [sys.executable, "-m", __name__, str(bundle.absolute()), str(gemm)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd=folder,  # Python would import from the folder it starts in
        )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        raise EngineError(f"{bundle}: could not be measured here: {lines[-1]}")
    return from_json(Measurement, json.loads(done.stdout), "")


def _write_gemm(path: Path) -> None:
    """A product of two square matrices, one of them a weight, for the engine to show its rate on."""
    from ..models.graph import Graph

    weight = np.random.default_rng(0).standard_normal((GEMM_SIDE, GEMM_SIDE), dtype=np.float32)
    with Graph(path, "gemm") as graph:
        product = graph.linear(graph.input("a", [GEMM_SIDE, GEMM_SIDE]), weight, None, "b")
        graph.output(product, "c", [GEMM_SIDE, GEMM_SIDE])


def run(bundle: Path, gemm: Path) -> Measurement:
    """Measure in this process; see `Measurement`."""
    import llama_cpp  # noqa: F401  loaded now, so that it counts as the base
    import onnxruntime  # noqa: F401

    base, load_before = _resident(), os.getloadavg()[0]
    clip = Path(str(files("svrt.models.pocket") / "sample" / "make.mp4"))
    found = Bundle.load(bundle)
    runs, fp32, bandwidth = [], 0.0, 0.0
    with Pipeline(found, backend=BACKEND) as pipeline:
        pipeline.describe(clip)
        peak = _high_water()
        for _ in range(RUNS):  # rates and times in turn: what else runs on the machine weighs on both
            runs.append(pipeline.describe(clip))
            fp32, bandwidth = max(fp32, _fp32_rate(gemm)), max(bandwidth, _bandwidth())
        backends = dict(pipeline.backends)
    size, candidates = _look_at(clip, found)
    return Measurement(
        threads=usable_processors(),
        load=load_before,
        fp32=fp32,
        bandwidth=bandwidth,
        candidates=candidates,
        generated=runs[0].tokens.generated,
        video_tokens=runs[0].tokens.video,
        size=size,
        stages_ms={stage: [asdict(r.timings_ms)[stage] for r in runs] for stage in asdict(runs[0].timings_ms)},
        backends=backends,
        base_bytes=base,
        peak_bytes=peak,
    )


def _look_at(clip: Path, bundle: Bundle) -> tuple[list[int], int]:
    """Width and height of the clip, and how many candidates it gives."""
    import cv2

    capture = cv2.VideoCapture(str(clip))
    size = [int(capture.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)]
    capture.release()
    spec = bundle.manifest
    kept, _ = read_candidates(clip, spec.sampler.candidates, lambda: Candidates(spec.sampler, spec.encoder))
    return size, len(kept)


def _resident() -> int:
    """Resident bytes of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _high_water() -> int:
    """Most memory that was resident in this process, in bytes. `ru_maxrss` begins with what the parent held."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of `ATTEMPTS`."""
    times = []
    for _ in range(ATTEMPTS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def _fp32_rate(gemm: Path) -> float:
    """Operations a second of the engine's own float32 product: numpy's library may reach half of it."""
    engine = load(gemm, BACKEND)
    matrix = np.random.default_rng(1).standard_normal((GEMM_SIDE, GEMM_SIDE), dtype=np.float32)
    return 2.0 * GEMM_SIDE**3 / _best(lambda: engine({"a": matrix}))


def _bandwidth() -> float:
    """Bytes a second that all threads together read, or copy, from memory: the higher of the two."""
    source, target = np.ones(COPIED // 8), np.zeros(COPIED // 8)
    threads = usable_processors()
    parts = [slice(i * len(source) // threads, (i + 1) * len(source) // threads) for i in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        copying = _best(lambda: list(pool.map(lambda part: np.copyto(target[part], source[part]), parts)))
        reading = _best(lambda: list(pool.map(lambda part: source[part].max(), parts)))
    return max(2.0 * source.nbytes / copying, source.nbytes / reading)


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(run(Path(sys.argv[1]), Path(sys.argv[2])))))
    except SvrtError as exc:
        sys.exit(str(exc))
