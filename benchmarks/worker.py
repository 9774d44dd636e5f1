"""A process of the benchmark: loads a bundle as `svrt describe` does, describes clips, and says how long each took.

`python -m svrt.benchmarks.worker JOB`, where JOB is a `Task` as JSON. Events go to stdout, a JSON object a line.
Only the clock is read in here: memory and power are the parent's to read.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import SvrtError
from ..records import from_json
from ..runtime.lean import make_lean

if TYPE_CHECKING:
    from ..runtime.pipeline import Pipeline


@dataclass(frozen=True)
class Task:
    """What one process does: describe `clips[first]` cold, then all clips in turn, beginning with it, until each had
    `rounds` runs and the monotonic clock is past `until`. Without clips it loads the bundle, and no more."""

    bundle: str
    clips: list[str]
    backend: str
    first: int
    rounds: int
    until: float


def perform(task: Task, say: TextIO) -> None:
    """Do the task and write events to `say`. Raises `SvrtError` where the bundle or a clip cannot be used."""
    from ..cache import engine_folder, open_bundle
    from ..runtime.pipeline import Pipeline

    imported = time.monotonic()
    bundle = open_bundle(task.bundle)
    with Pipeline(bundle, task.backend, engine_cache=engine_folder()) as pipeline:
        ready = {"imported": imported, "loaded": time.monotonic(), "backends": pipeline.backends}
        _write(say, "ready", **ready, versions=versions())
        if not task.clips:
            return
        order = [(task.first + step) % len(task.clips) for step in range(len(task.clips))]
        _write(say, "run", cold=True, **describe(pipeline, task.clips, task.first))
        done = 0
        while done < task.rounds or time.monotonic() < task.until:
            for clip in order:
                _write(say, "run", cold=False, **describe(pipeline, task.clips, clip))
            done += 1
    from .memory import peak_rss_mib

    _write(say, "end", peak_rss_mib=peak_rss_mib())


def describe(pipeline: Pipeline, clips: list[str], clip: int) -> dict[str, Any]:
    """Describe one clip: when it began and ended on the monotonic clock, its stages, and when its text began."""
    first: list[float] = []

    def on_text(_: str) -> None:
        if not first:
            first.append(time.monotonic())

    start = time.monotonic()
    found = pipeline.describe(clips[clip], on_text=on_text)
    stop = time.monotonic()
    stages = asdict(found.timings_ms)
    del stages["total"]  # the whole is measured here
    return {
        "clip": clip,
        "start": start,
        "stop": stop,
        "stages_ms": stages,
        "first_token_ms": (first[0] - start) * 1e3 if first else None,
        "generated": found.tokens.generated,
        "text": found.text,
    }


def versions() -> dict[str, str]:
    """The libraries that did the work, by what they say of themselves: a board may bring its own builds."""
    found = {"svrt": version("svrt"), "Python": platform.python_version()}
    found["llama-cpp-python"] = version("llama-cpp-python")  # of which only the bindings are loaded
    names = {
        "numpy": "numpy",
        "cv2": "OpenCV",
        "onnxruntime": "ONNX Runtime",
        "tensorrt": "TensorRT",
        "tensorrt_rtx": "TensorRT for RTX",
        "openvino": "OpenVINO",
    }
    for module, name in names.items():
        number = getattr(sys.modules.get(module), "__version__", None)
        if number is not None:
            found[name] = str(number)
    return found


def _write(say: TextIO, event: str, **values: Any) -> None:
    say.write(json.dumps({"event": event, **values}) + "\n")
    say.flush()


def main() -> None:
    make_lean()
    say = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is not an event
    try:
        perform(from_json(Task, json.loads(sys.argv[1]), ""), say)
    except SvrtError as exc:
        _write(say, "error", message=str(exc), kind=type(exc).__name__)
        sys.exit(exc.exit_code)


if __name__ == "__main__":
    main()
