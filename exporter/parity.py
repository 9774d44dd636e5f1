"""Parity: each exported component against its float32 reference, on real frames and on noise.

Real frames come from the rendered sample clip, read and sampled as at run time.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np

from ..bundle import DecoderSpec, EncoderSpec, Parity, SamplerSpec
from ..errors import CheckpointError
from ..kernels.preprocess import Normalisation, normalise
from ..models.checkpoint import Checkpoint
from ..runtime.decoder import Decoder
from ..runtime.engines import load
from ..runtime.sampler import Candidates
from ..runtime.video import read_candidates
from . import reference

# What a precision may cost before an export is stopped: the greatest relative error, the least cosine.
RELATIVE_LIMIT = {"fp32": 1e-5}
COSINE_LIMIT = {"fp32": 0.99999, "fp16": 0.999}
DATA = "sample clip and noise"
NOISE_SEED = 0


def sample_clip() -> Path:
    """The rendered clip that ships with svrt: a made shot."""
    return Path(str(files("svrt.models.pocket") / "sample" / "make.mp4"))


def sample_candidates(sampler: SamplerSpec, encoder: EncoderSpec) -> Candidates:
    """The sample clip as the runtime would read it."""
    return read_candidates(sample_clip(), sampler.candidates, lambda: Candidates(sampler, encoder))[0]


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
            "limit; " + ("export it in fp32" if precision == "fp16" else "are all values of the checkpoint finite?")
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
    result = load(graph, precision=precision)({"images": tensor})["features"]
    expected = reference.vgg16(checkpoint, tensor)
    return _judge(graph, precision, list(zip(result, expected, strict=True)), "numpy float32")


def encoder_parity(
    graph: Path, checkpoint: Checkpoint, projector: Checkpoint, spec: EncoderSpec, clip: Candidates, precision: str
) -> tuple[Parity, np.ndarray]:
    """The encoder graph against numpy; also the sample clip's video tokens, float32 [tokens, width]."""
    views = np.stack([clip.views[i * len(clip) // spec.frames] for i in range(spec.frames)])
    norm = Normalisation("rgb", spec.scale, spec.mean, spec.std)
    real = normalise(views, norm)[None]
    noise = np.random.default_rng(NOISE_SEED).standard_normal(real.shape, dtype=np.float32)
    engine = load(graph, precision=precision)
    grid = (spec.token_grid[0], spec.token_grid[1], spec.token_grid[2])
    pairs = [
        (engine({"pixel_values_videos": x})["video_tokens"], reference.video_tokens(checkpoint, projector, x, grid))
        for x in (real, noise)
    ]
    return _judge(graph, precision, pairs, "numpy float32"), pairs[0][0][0]


def decoder_parity(quantized: Path, merged: Path, spec: DecoderSpec, tokens: np.ndarray) -> Parity:
    """Next-token logits of the quantized GGUF against the merged F16 one, behind the sample clip's video tokens.

    No limit: what a quantization costs is for the one who chose it to judge.
    """
    logits = []
    for gguf in (quantized, merged):
        with Decoder(
            gguf, prefix=spec.prefix, suffix=spec.suffix, max_tokens=spec.max_tokens, video_tokens=len(tokens)
        ) as decoder:
            logits.append(decoder.prefill(tokens))
    return _judge(quantized, "", [(logits[0], logits[1])], "merged F16 GGUF")
