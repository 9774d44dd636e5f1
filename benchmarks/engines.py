"""Every backend and setting that could run a bundle's graphs here: time, load, memory, agreement.

    python -m svrt.benchmarks.engines --bundle BUNDLE [--graph vgg16.onnx] [--rounds N] [--json FILE]

What `svrt.runtime.engines` sets for ONNX Runtime and OpenVINO is a row; each other row changes one setting of it.
Every row is a process of its own, started anew each round, in turn: memory is that of the row alone, and a noisy
machine disturbs all alike. Time is of the shortest run, as whatever else runs can only lengthen one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import ENCODER, VGG16, Bundle
from ..errors import SvrtError
from ..runtime.engines import CPU_BACKENDS, LARGE, QUANTIZED, VNNI, load_one
from ..runtime.engines.trial import installed, least_cosine
from ..runtime.sampler import cached_batch
from .memory import peak_rss_mib

ROUNDS = 3
RUNS = 5  # timed in a process, after one that is not
SEED = 0
_PURPOSE = "Time, load, memory and agreement of every backend and setting on a bundle's graphs."


@dataclass(frozen=True)
class Setting:
    """A backend as the runtime loads it, or with one setting changed: `field` of ONNX Runtime's session options or
    property of OpenVINO's processor plugin."""

    backend: str
    name: str = ""
    value: Any = None

    def __str__(self) -> str:
        return self.backend if not self.name else f"{self.backend}, {self.name} = {self.value}"


# What the two can be told that costs or saves time or memory. What is already set is left out.
CHANGES = {
    "onnxruntime": (
        *(("graph_optimization_level", level) for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC")),
        ("graph_optimization_level", "ORT_ENABLE_EXTENDED"),
        ("enable_mem_pattern", False),
        ("session.intra_op.allow_spinning", "1"),
        ("session.disable_prepacking", "1"),
        ("intra_op_num_threads", 1),
    ),
    "openvino": (
        ("ENABLE_CPU_PINNING", False),
        ("ENABLE_MMAP", False),
        ("PERFORMANCE_HINT", "THROUGHPUT"),
        ("INFERENCE_NUM_THREADS", 1),
    ),
}


@dataclass
class Row:
    """A setting on a graph: figures by round, or why it failed."""

    graph: str
    setting: str
    precision: str = ""
    run_ms: list[float] = field(default_factory=list)
    load_ms: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)
    cosine: float = 0.0
    failed: str = ""


def settings(path: Path) -> list[Setting]:
    """Every backend of the processor that is installed and runs the graph at `path`, and its changes."""
    found, weights = [], path.with_name(f"{path.name}.data")
    vgg16, large = path.name == VGG16, weights.is_file() and weights.stat().st_size >= LARGE
    suits = {"ncnn": vgg16, QUANTIZED: large, VNNI: vgg16 or large}
    for backend in sorted(installed(), key=list(CPU_BACKENDS)[::-1].index):  # ONNX Runtime first: others are held to it
        if not suits.get(backend, True):
            continue
        found.append(Setting(backend))
        found += [Setting(backend, name, value) for name, value in CHANGES.get(backend, ())]
    return found


def run_one(graph: Path, precision: str, batch: int, setting: Setting, outputs: Path) -> dict[str, Any]:
    """Load and run a graph in this process; its outputs go to the file `outputs`."""
    _change(setting)
    started = time.perf_counter()
    engine: Any = load_one(graph, setting.backend, precision, None)
    load_ms = (time.perf_counter() - started) * 1e3
    rng = np.random.default_rng(SEED)
    inputs = {
        name: rng.standard_normal([side or batch for side in shape], dtype=np.float32)
        for name, shape in engine.inputs.items()
    }
    np.savez(outputs, **engine(inputs))
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        engine(inputs)
        times.append((time.perf_counter() - started) * 1e3)
    return {
        "run_ms": min(times),
        "load_ms": load_ms,
        "peak_mib": peak_rss_mib(),
        "precision": engine.precision,
    }


def _change(setting: Setting) -> None:
    """Have the library's own entry point change one setting of what the engine asks for: the engine stays as it is."""
    if not setting.name:
        return
    if setting.backend == "onnxruntime":
        import onnxruntime as ort

        session: Callable[..., Any] = ort.InferenceSession

        def create(path: str, options: Any, **rest: Any) -> Any:
            if "." in setting.name:
                options.add_session_config_entry(setting.name, setting.value)
            elif setting.name == "graph_optimization_level":
                options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, setting.value)
            else:
                setattr(options, setting.name, setting.value)
            return session(path, options, **rest)

        ort.InferenceSession = create
    else:
        import openvino as ov

        class Core(ov.Core):  # type: ignore[misc]
            def compile_model(self, model: Any, device: str, options: dict[str, Any]) -> Any:
                return super().compile_model(model, device, {**options, setting.name: setting.value})

        ov.Core = Core


def measure(
    bundle: Bundle, graphs: Sequence[str], rounds: int, tell: Callable[[str], None] = lambda _: None
) -> list[Row]:
    """Every setting on every graph, `rounds` processes each."""
    rows = []
    for graph in graphs:
        ways = settings(bundle.file(graph))
        made = [Row(graph, str(way)) for way in ways]
        with tempfile.TemporaryDirectory() as folder:
            for round_ in range(rounds):
                for at, way in enumerate(ways):
                    if not made[at].failed:
                        tell(f"{graph}, round {round_ + 1}: {way}")
                        _add(made[at], bundle, way, Path(folder) / f"{at}.npz")
            _compare(made, Path(folder))
        rows += made
    return rows


def _add(row: Row, bundle: Bundle, setting: Setting, outputs: Path) -> None:
    """One process of a row."""
    record = bundle.manifest.files[row.graph]
    task = [str(bundle.file(row.graph)), record.precision, cached_batch(bundle.manifest.sampler.size)]
    command = [sys.executable, "-m", "svrt.benchmarks.engines", "--task"]
    text = json.dumps([*task, asdict(setting), str(outputs)])
    done = subprocess.run([*command, text], capture_output=True, text=True)
    if done.returncode:
        row.failed = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return
    figures = json.loads(done.stdout.splitlines()[-1])
    row.precision = figures["precision"]
    for name in ("run_ms", "load_ms", "peak_mib"):
        getattr(row, name).append(figures[name])


def _compare(rows: list[Row], folder: Path) -> None:
    """The least cosine of each row's outputs with the first row's."""
    arrays = [dict(np.load(folder / f"{at}.npz")) if not row.failed else None for at, row in enumerate(rows)]
    for row, found in zip(rows, arrays, strict=True):
        if found is not None and arrays[0] is not None:
            row.cosine = least_cosine(found, arrays[0])


def table(rows: Sequence[Row]) -> str:
    """The figures as Markdown, medians of the rounds."""
    lines = ["| graph | setting | computes in | ms a run | of the first | load, ms | peak memory, MiB | cosine |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- |")
    first: dict[str, float] = {}
    for row in rows:
        if row.failed:
            lines.append(f"| {row.graph} | {row.setting} | failed: {row.failed} | | | | | |")
            continue
        run, loading, peak = (statistics.median(values) for values in (row.run_ms, row.load_ms, row.peak_mib))
        ratio = run / first.setdefault(row.graph, run)
        lines.append(
            f"| {row.graph} | {row.setting} | {row.precision} | {run:.1f} | {ratio:.2f} | {loading:.0f} | {peak:.0f} "
            f"| {row.cosine:.6f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m svrt.benchmarks.engines", description=_PURPOSE)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--graph", choices=(VGG16, ENCODER), help="both if not given")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--json", type=Path, help="file for every figure")
    parser.add_argument("--task", help=argparse.SUPPRESS)  # a process of a row
    given = parser.parse_args(arguments)
    try:
        if given.task is not None:
            graph, precision, batch, setting, outputs = json.loads(given.task)
            print(json.dumps(run_one(Path(graph), precision, batch, Setting(**setting), Path(outputs))))
            return 0
        if given.bundle is None:
            parser.error("--bundle is needed")
        graphs = (VGG16, ENCODER) if given.graph is None else (given.graph,)
        rows = measure(
            Bundle.load(given.bundle), graphs, max(1, given.rounds), lambda line: print(line, file=sys.stderr)
        )
    except SvrtError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    print(table(rows))
    if given.json is not None:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
