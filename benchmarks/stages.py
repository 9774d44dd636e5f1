"""Time and memory of `describe`, stage by stage, on this machine: `python -m svrt.benchmarks.stages`.

Loading and the first clip are given apart from the warm runs after it. Peak memory is of a process of its own.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..bundle import Bundle
from ..cache import built_in_bundle
from ..errors import SvrtError
from ..runtime.pipeline import Pipeline, Timings
from ..runtime.processors import usable_processors

SAMPLE = Path(__file__).parent.parent / "models" / "pocket" / "sample" / "make.mp4"


def machine() -> str:
    """One line that names this machine: processor, usable cores, memory, kernel."""
    name = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {usable_processors()} cores, {memory:.0f} GiB, Linux {platform.release()}"


def versions() -> str:
    """The libraries that do the work, by what they say of themselves: a board may bring its own builds."""
    import cv2
    import llama_cpp
    import onnxruntime

    found = {"svrt": version("svrt"), "OpenCV": cv2.__version__, "ONNX Runtime": onnxruntime.__version__}
    found |= {"llama-cpp-python": llama_cpp.__version__, "Python": platform.python_version()}
    return ", ".join(f"{name} {number}" for name, number in found.items())


def table(cold: Timings, warm: list[Timings]) -> Table:
    """Milliseconds per stage: the first clip, then median, least and most of the warm runs."""
    result = Table(box=None, pad_edge=False)
    result.add_column("stage")
    for heading in ("first ms", "median ms", "min ms", "max ms"):
        result.add_column(heading, justify="right")
    for stage, first in asdict(cold).items():
        values = [asdict(run)[stage] for run in warm]
        cells = (first, statistics.median(values), min(values), max(values))
        result.add_row(stage, *(f"{cell:.1f}" for cell in cells))
    return result


def run(
    bundle: Annotated[Path | None, typer.Option(help="Bundle; the built-in one if not given.")] = None,
    clip: Annotated[Path, typer.Option(help="Clip; the rendered sample if not given.")] = SAMPLE,
    runs: Annotated[int, typer.Option(min=1, help="Warm runs.")] = 10,
) -> None:
    """Time and memory of `describe`, stage by stage."""
    found = built_in_bundle() if bundle is None else Bundle.load(bundle)
    started = time.perf_counter()
    with Pipeline(found) as pipeline:
        loading = (time.perf_counter() - started) * 1e3
        cold = pipeline.describe(clip)
        warm = [pipeline.describe(clip).timings_ms for _ in range(runs)]
        backends = ", ".join(f"{stage}: {name}" for stage, name in pipeline.backends.items())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    console = Console(soft_wrap=True)
    console.print(
        f"{machine()}\n{versions()}\nbundle {found.manifest.name} {found.sha256[:12]}; {backends}", highlight=False
    )
    console.print(
        f"clip {clip.name}; {cold.tokens.video} video tokens, {cold.tokens.generated} generated; {runs} warm runs\n"
    )
    console.print(table(cold.timings_ms, warm), highlight=False)
    console.print(f"\nloading {loading:.0f} ms; peak memory {peak:.0f} MiB", highlight=False)


def main() -> None:
    try:
        typer.run(run)
    except SvrtError as exc:
        print(f"svrt: error: {exc}", file=sys.stderr)
        sys.exit(exc.exit_code)


if __name__ == "__main__":
    main()
