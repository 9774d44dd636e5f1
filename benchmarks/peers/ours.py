"""svrt, a stage at a time: what `svrt.load()` keeps warm, and no more of it than the stage needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ...bundle import ENCODER, VGG16, Bundle
from ...cache import engine_folder
from ...runtime.engines import AUTO, Engine
from ...runtime.engines import load as load_engine
from ...runtime.pipeline import Pipeline, engine_store
from ...runtime.sampler import Candidates, Sampler, select, suited_batch
from ...runtime.video import Frame, read_candidates
from ..decoder import Setting
from .contestants import (
    DECODE,
    DESCRIBE,
    ENCODE,
    ENCODING,
    FIRST,
    FRAME,
    PREFILL,
    REST,
    SAMPLE,
    STEP,
    VGG,
    VGG_ALONE,
    WHOLE,
    Contestant,
    Outputs,
    Task,
)
from .prepare import Prompt, inputs, load_bundle


def load(task: Task) -> Contestant:
    """The stage of a task."""
    kinds: dict[str, Callable[[Task], Contestant]] = {
        VGG: _Vgg16,
        ENCODE: _Encoder,
        SAMPLE: _Sampler,
        DECODE: _Decoder,
        DESCRIBE: _Describe,
    }
    return kinds[task.stage](task)


def _engine(bundle: Bundle, name: str) -> Engine:
    """As `Pipeline` loads it."""
    store = engine_store(bundle, engine_folder())
    return load_engine(bundle.file(name), AUTO, bundle.manifest.files[name].precision, store)


class _Vgg16:
    def __init__(self, task: Task) -> None:
        bundle = load_bundle(task)
        self._engine = _engine(bundle, VGG16)
        self.precision = f"{self._engine.name} {self._engine.precision}"
        self._batch = suited_batch(self._engine, bundle.manifest.sampler.size)
        self.note = f"{self._batch} at a time"
        self._images = inputs(task.prepared)["images"]

    def run(self) -> dict[str, float]:
        started = time.perf_counter()
        batches = [self._images[at : at + self._batch] for at in range(0, len(self._images), self._batch)]
        self._features = np.concatenate([self._engine({"images": batch})["features"] for batch in batches])
        return {FRAME: (time.perf_counter() - started) * 1e3 / len(self._images)}

    def outputs(self) -> Outputs:
        return Outputs({"features": self._features})


class _Encoder:
    note = ""

    def __init__(self, task: Task) -> None:
        self._engine = _engine(load_bundle(task), ENCODER)
        self.precision = f"{self._engine.name} {self._engine.precision}"
        self._pixels = inputs(task.prepared)["pixels"]

    def run(self) -> dict[str, float]:
        started = time.perf_counter()
        self._tokens = self._engine({"pixel_values_videos": self._pixels})["video_tokens"]
        return {ENCODING: (time.perf_counter() - started) * 1e3}

    def outputs(self) -> Outputs:
        return Outputs({"video_tokens": self._tokens})


class _Frames:
    """Keeps a clip's candidates as they are decoded."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def add(self, frame: Frame) -> None:
        self.frames.append(Frame(frame.index, frame.time_s, frame.image.copy()))


class _Sampler:
    """Reducing and choosing; VGG-16 is timed beside them, and the same features are given to all for choosing."""

    note = ""

    def __init__(self, task: Task) -> None:
        self._bundle = load_bundle(task)
        self._spec = self._bundle.manifest.sampler
        engine = _engine(self._bundle, VGG16)
        self._sampler, self.precision = Sampler(self._spec, engine), f"{engine.name} {engine.precision}"
        self._frames = read_candidates(task.clip, self._spec.candidates, _Frames)[0].frames
        self._features = inputs(task.prepared)["features"]

    def run(self) -> dict[str, float]:
        started = time.perf_counter()
        candidates = Candidates(self._spec, self._bundle.manifest.encoder)
        for frame in self._frames:
            candidates.add(frame)
        reduced = time.perf_counter()
        self._sampler.features(candidates)
        embedded = time.perf_counter()
        picks = select(self._features, self._spec.keyframes)
        ended = time.perf_counter()
        self._keyframes = [candidates.indices[pick] for pick in picks]
        return {REST: (reduced - started + ended - embedded) * 1e3, VGG_ALONE: (embedded - reduced) * 1e3}

    def outputs(self) -> Outputs:
        return Outputs(keyframes=self._keyframes)


class _Decoder:
    note = "prefix kept"

    def __init__(self, task: Task) -> None:
        bundle, self._prompt = load_bundle(task), Prompt.read(task.prepared)
        self._decoder = Setting.of(bundle, self._prompt.max_tokens).decoder()
        self.precision = self._decoder.name.rpartition(" ")[2]
        self._tokens = inputs(task.prepared)["tokens"]

    def run(self) -> dict[str, float]:
        said = self._decoder.generate(self._tokens)
        self._text = said.text
        # The token that ends a text is decoded for, too.
        steps = said.generated_tokens - (said.generated_tokens == self._prompt.max_tokens)
        return {PREFILL: said.prefill_ms, **({STEP: said.generate_ms / steps} if steps else {})}

    def outputs(self) -> Outputs:
        return Outputs(text=self._text)


class _Describe:
    note = ""

    def __init__(self, task: Task) -> None:
        self._clip = Path(task.clip)
        self._pipeline = Pipeline(load_bundle(task), engine_cache=engine_folder())
        self.precision = ", ".join(dict.fromkeys(self._pipeline.backends.values()))

    def run(self) -> dict[str, float]:
        first: list[float] = []
        started = time.perf_counter()
        self._said = self._pipeline.describe(self._clip, on_text=lambda _: first.append(time.perf_counter()))
        found = {WHOLE: (time.perf_counter() - started) * 1e3}
        return found | ({FIRST: (first[0] - started) * 1e3} if first else {})

    def outputs(self) -> Outputs:
        return Outputs(keyframes=[one.index for one in self._said.keyframes], text=self._said.text)
