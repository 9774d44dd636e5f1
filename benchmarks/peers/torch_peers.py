"""The pipeline as one writes it with PyTorch, scikit-learn and transformers, in float32 or bfloat16, plain or compiled.

VGG-16 gets `VGG_BATCH` pictures at a time, as many as ours ever does; the text is `LlamaForCausalLM.generate` behind
the prompt's embeddings.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers

from ...runtime.sampler import VGG_BATCH
from .contestants import (
    BFLOAT16,
    DECODE,
    DESCRIBE,
    ENCODE,
    ENCODING,
    FIRST,
    FLOAT32,
    FRAME,
    PREFILL,
    REST,
    SAMPLE,
    STEP,
    VGG,
    WHOLE,
    Contestant,
    Outputs,
    Task,
)
from .networks import compiled, load_decoder, load_encoder, load_vgg16, use_all_processors
from .prepare import Prompt, inputs, load_bundle


def load(task: Task) -> Contestant:
    """The stage of a task; its peer's name says in which type, and whether it is compiled."""
    cast(Any, transformers.logging).set_verbosity_error()
    cast(Any, transformers.logging).disable_progress_bar()
    use_all_processors()
    kinds: dict[str, Callable[[Task], Contestant]] = {
        VGG: _Vgg16,
        ENCODE: _Encoder,
        SAMPLE: _Sampler,
        DECODE: _Decoder,
        DESCRIBE: _Describe,
    }
    return kinds[task.stage](task)


class _Torch:
    """What all stages share: type, threads, whether networks are compiled."""

    def __init__(self, task: Task) -> None:
        self.precision = BFLOAT16 if BFLOAT16 in task.peer else FLOAT32
        self._dtype = cast(torch.dtype, getattr(torch, self.precision))
        self._compiled = task.peer.endswith("compiled")
        self.note = ""

    def _run_by(self, network: torch.nn.Module) -> Callable[..., Any]:
        return compiled(network) if self._compiled else network

    def _vgg16(self, folder: Path) -> Callable[[np.ndarray], np.ndarray]:
        """float32 [N, 3, S, S] to float32 [N, 512]."""
        network = self._run_by(load_vgg16(folder, self._dtype))

        def run(images: np.ndarray) -> np.ndarray:
            batches = torch.split(torch.from_numpy(images).to(self._dtype), VGG_BATCH)
            return torch.cat([network(batch) for batch in batches]).float().numpy()

        return run

    def _encoder(self, task: Task) -> Callable[[np.ndarray], torch.Tensor]:
        """float32 [1, T, 3, S, S] to [1, tokens, width] in the type computed in."""
        network = self._run_by(load_encoder(task.prepared, load_bundle(task).manifest.encoder, self._dtype))
        return lambda pixels: network(torch.from_numpy(pixels).to(self._dtype))


class _Vgg16(_Torch):
    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._network, self._images = self._vgg16(task.prepared), inputs(task.prepared)["images"]
        self.note = f"{VGG_BATCH} at a time"

    @torch.inference_mode()
    def run(self) -> dict[str, float]:
        started = time.perf_counter()
        self._features = self._network(self._images)
        return {FRAME: (time.perf_counter() - started) * 1e3 / len(self._images)}

    def outputs(self) -> Outputs:
        return Outputs({"features": self._features})


class _Encoder(_Torch):
    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._network, self._pixels = self._encoder(task), inputs(task.prepared)["pixels"]

    @torch.inference_mode()
    def run(self) -> dict[str, float]:
        started = time.perf_counter()
        self._tokens = self._network(self._pixels).float().numpy()
        return {ENCODING: (time.perf_counter() - started) * 1e3}

    def outputs(self) -> Outputs:
        return Outputs({"video_tokens": self._tokens})


class _Sampler(_Torch):
    def __init__(self, task: Task) -> None:
        from . import plain

        super().__init__(task)
        self._plain, self._manifest = plain, load_bundle(task).manifest
        self._indices, self._frames = plain.read_frames(Path(task.clip), self._manifest.sampler.candidates)
        self._features = inputs(task.prepared)["features"]
        self.precision, self.note = "PyWavelets, scikit-learn", ""

    def run(self) -> dict[str, float]:
        spec = self._manifest.sampler
        started = time.perf_counter()
        self._plain.reduce_frames(self._frames, spec, self._manifest.encoder)
        picks = self._plain.choose(self._features, spec.keyframes)
        found = {REST: (time.perf_counter() - started) * 1e3}
        self._keyframes = [self._indices[pick] for pick in picks]
        return found

    def outputs(self) -> Outputs:
        return Outputs(keyframes=self._keyframes)


class _Clock(transformers.StoppingCriteria):  # type: ignore[misc]
    """Notes when each token was there; stops nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


class _Writer:
    """`LlamaForCausalLM.generate` behind prefix, video tokens and suffix."""

    def __init__(self, folder: Path, dtype: torch.dtype, compile_it: bool) -> None:
        self._model, self._prompt = load_decoder(folder, dtype), Prompt.read(folder)
        if compile_it:
            self._model.forward = torch.compile(self._model.forward, dynamic=True)
        self._settings = cast(Any, transformers.GenerationConfig)(
            do_sample=False,
            max_new_tokens=self._prompt.max_tokens,
            eos_token_id=self._prompt.ends,
            pad_token_id=self._prompt.ends[0] if self._prompt.ends else 0,
        )

    def write(self, video: torch.Tensor) -> tuple[list[int], list[float]]:
        """Token ids of a text about video tokens [1, n, width], without the one that ends it; and when each was there,
        that one too."""
        table = cast(Any, self._model.get_input_embeddings())
        around = [table(torch.tensor([ids], dtype=torch.long)) for ids in (self._prompt.prefix, self._prompt.suffix)]
        embeds = torch.cat([around[0], video.to(around[0].dtype), around[1]], dim=1)
        clock = _Clock()
        ids = cast(Any, self._model).generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            generation_config=self._settings,
            stopping_criteria=transformers.StoppingCriteriaList([clock]),
        )
        said = ids[0].tolist()
        return [token for token in said if token not in self._prompt.ends], clock.times


class _Decoder(_Torch):
    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._writer = _Writer(task.prepared, self._dtype, self._compiled)
        self._video = torch.from_numpy(inputs(task.prepared)["tokens"])[None]

    @torch.inference_mode()
    def run(self) -> dict[str, float]:
        started = time.perf_counter()
        self._ids, times = self._writer.write(self._video)
        steps = len(times) - 1
        found = {PREFILL: (times[0] - started) * 1e3}
        return found | ({STEP: (times[-1] - times[0]) * 1e3 / steps} if steps else {})

    def outputs(self) -> Outputs:
        return Outputs(token_ids=self._ids)


class _Describe(_Torch):
    """The whole: frames read, sampled, encoded, described."""

    def __init__(self, task: Task) -> None:
        from . import plain

        super().__init__(task)
        self._plain, self._clip, self._manifest = plain, Path(task.clip), load_bundle(task).manifest
        self._see, self._encode = self._vgg16(task.prepared), self._encoder(task)
        self._writer = _Writer(task.prepared, self._dtype, self._compiled)

    @torch.inference_mode()
    def run(self) -> dict[str, float]:
        started = time.perf_counter()
        indices, frames = self._plain.read_frames(self._clip, self._manifest.sampler.candidates)
        reduced = self._plain.reduce_frames(frames, self._manifest.sampler, self._manifest.encoder)
        picks = self._pick(reduced)
        views = np.stack([reduced.views[pick] for pick in picks])
        tokens = self._encode(self._plain.normalised(views, self._manifest.encoder)[None])
        self._ids, times = self._writer.write(tokens)
        self._keyframes = [indices[pick] for pick in picks]
        return {WHOLE: (time.perf_counter() - started) * 1e3, FIRST: (times[0] - started) * 1e3}

    def _pick(self, reduced: Any) -> list[int]:
        spec = self._manifest.sampler
        pictures = np.stack(reduced.appearance)
        maps = np.repeat(np.stack(reduced.motion)[..., None], 3, axis=3)
        seen = [self._see(self._plain.normalised(images, spec)) for images in (pictures, maps)]
        return self._plain.choose(self._plain.fuse(*seen), spec.keyframes)

    def outputs(self) -> Outputs:
        return Outputs(keyframes=self._keyframes, token_ids=self._ids)
