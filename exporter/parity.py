"""Parity: each exported component against its float32 reference, on real frames and on noise.

Real frames come from the rendered sample clip, read and sampled as at run time. An engine is let go before its
reference is computed: at full size each takes more than a gigabyte.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import numpy as np

from ..bundle import GRAPH_COSINE, DecoderSpec, EncoderSpec, Parity, SamplerSpec
from ..errors import CheckpointError
from ..kernels.preprocess import Normalisation, normalise
from ..models.checkpoint import Checkpoint
from ..runtime.decoder import Decoder, is_repacked
from ..runtime.engines import load
from ..runtime.sampler import Candidates
from ..runtime.video import read_candidates
from . import reference
from .reference_llama import centred, decoder_logits

# What a precision may cost before an export is stopped: the greatest relative error, the least cosine. Fewer bits have
# no limit: what they cost is for the one who chose them to judge, and a wrong merge shows in float16.
RELATIVE_LIMIT = {"fp32": 1e-5}
COSINE_LIMIT = {**GRAPH_COSINE, "f16": 0.999, "q8_0": 0.99}
DATA = "sample clip and noise"
NOISE_SEED = 0
REFERENCE_BACKEND = "onnxruntime"  # parity is of the graph: it must not depend on the GPU at hand


def sample_clip() -> Path:
    """The rendered clip that ships with svrt: a made shot."""
    return Path(str(files("svrt.models.pocket") / "sample" / "make.mp4"))


def sample_candidates(sampler: SamplerSpec, encoder: EncoderSpec) -> Candidates:
    """The sample clip as the runtime would read it."""
    return read_candidates(sample_clip(), sampler.candidates, lambda: Candidates(sampler, encoder))[0]


def encoder_input(spec: EncoderSpec, clip: Candidates) -> np.ndarray:
    """A clip's candidate frames, taken evenly, as the encoder reads keyframes: float32 [1, frames, 3, size, size]."""
    views = np.stack([clip.view(i * len(clip) // spec.frames) for i in range(spec.frames)])
    return normalise(views, Normalisation("rgb", spec.scale, spec.mean, spec.std))[None]


def compare(result: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Relative error and cosine of two arrays of one shape, in float64."""
    a, b = result.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    tiny = float(np.finfo(np.float64).tiny)
    scale = max(float(np.linalg.norm(b)), tiny)
    cosine = float(a @ b) / max(float(np.linalg.norm(a)) * scale, tiny)
    return float(np.linalg.norm(a - b)) / scale, min(cosine, 1.0)


def _judge(component: Path, precision: str, pairs: list[tuple[np.ndarray, np.ndarray]], against: str) -> Parity:
    """The worst figures over `pairs`; raises `CheckpointError` where they are beyond the limits of `precision`."""
    figures = [compare(result, expected) for result, expected in pairs]
    error, cosine = max(e for e, _ in figures), min(c for _, c in figures)
    if not (error <= RELATIVE_LIMIT.get(precision, np.inf) and cosine >= COSINE_LIMIT.get(precision, -1.0)):
        raise CheckpointError(
            f"{component.name}: {precision} differs from its reference by {error:.1e} (cosine {cosine:.6f}), over the "
            "limit; "
            + (
                "export it with --precision fp32"
                if precision in ("fp16", "int8")
                else "are all values of the checkpoint finite?"
            )
        )
    return Parity(relative_error=float(f"{error:.3g}"), cosine=round(cosine, 8), reference=against, data=DATA)


def vgg16_parity(graph: Path, checkpoint: Checkpoint, spec: SamplerSpec, clip: Candidates, precision: str) -> Parity:
    """The VGG-16 graph against numpy: two frames, their motion maps, two frames of noise."""
    middle = len(clip) // 2
    images = [*clip.appearance[middle : middle + 2]]
    images += [np.repeat(m[..., None], 3, axis=2) for m in clip.motion[middle : middle + 2]]
    noise = np.random.default_rng(NOISE_SEED).integers(0, 256, (2, spec.size, spec.size, 3))
    batch = np.concatenate([np.stack(images).astype(np.float32), noise.astype(np.float32)])
    norm = Normalisation(spec.channels, spec.scale, spec.mean, spec.std)
    tensor = normalise(batch, norm)
    result = load(graph, REFERENCE_BACKEND, precision)({"images": tensor})["features"]
    expected = reference.vgg16(checkpoint, tensor)
    _return_memory()
    return _judge(graph, precision, list(zip(result, expected, strict=True)), "numpy float32")


def encoder_parity(
    graph: Path, checkpoint: Checkpoint, projector: Checkpoint, spec: EncoderSpec, clip: Candidates, precision: str
) -> tuple[Parity, np.ndarray]:
    """The encoder graph against numpy; also the sample clip's video tokens, float32 [tokens, width]."""
    real = encoder_input(spec, clip)
    noise = np.random.default_rng(NOISE_SEED).standard_normal(real.shape, dtype=np.float32)
    engine = load(graph, REFERENCE_BACKEND, precision)
    results = [engine({"pixel_values_videos": x})["video_tokens"] for x in (real, noise)]
    del engine
    grid = (spec.token_grid[0], spec.token_grid[1], spec.token_grid[2])
    pairs = [
        (result, reference.video_tokens(checkpoint, projector, x, grid))
        for result, x in zip(results, (real, noise), strict=True)
    ]
    _return_memory()
    return _judge(graph, precision, pairs, "numpy float32"), pairs[0][0][0]


def decoder_parity(
    merged: Path,
    quantized: Path,
    source: Path,
    adapter: Path | None,
    spec: DecoderSpec,
    tokens: np.ndarray,
    quantization: str,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> tuple[Parity, Parity]:
    """The merged F16 GGUF, and llama.cpp on the quantized one, against numpy on base and LoRA as they were given.

    Compared are next-token logits, less their mean over the vocabulary, behind the prompt with the sample clip's video
    tokens in it, float32 [tokens, width], and with noise of their scale. The merged GGUF is read by numpy too, a matrix
    at a time: mapped by llama.cpp it would count as memory. `progress` gets layers of the references.
    """
    noise = np.random.default_rng(NOISE_SEED).standard_normal(tokens.shape, dtype=np.float32) * tokens.std()
    clips = [tokens, noise]
    _return_memory()
    with Decoder(
        quantized,
        prefix=spec.prefix,
        suffix=spec.suffix,
        max_tokens=spec.max_tokens,
        video_tokens=len(tokens),
        repacked=is_repacked(quantization),
        answers=list(spec.answers.values()),
        temperature=spec.temperature,
    ) as decoder:
        prompt = decoder.prompt
        results = [decoder.prefill(clip) for clip in clips]
    _return_memory()
    expected = decoder_logits(source, adapter, prompt, clips, lambda at, total: progress(at, 2 * total))
    together = decoder_logits(merged, None, prompt, clips, lambda at, total: progress(total + at, 2 * total))
    _return_memory()
    return (
        _judge(merged, "f16", _centred_pairs(together, expected), "numpy float32"),
        _judge(quantized, quantization, _centred_pairs(results, expected), "numpy float32"),
    )


def _centred_pairs(results: list[np.ndarray], expected: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(centred(a), centred(b)) for a, b in zip(results, expected, strict=True)]


def _return_memory() -> None:
    """Give what was freed back to the system: the C library would keep more than a gigabyte of it for itself."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than GNU's
        ctypes.CDLL(None).malloc_trim(0)
