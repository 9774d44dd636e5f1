"""The frames that the runtime's sampler picks from a clip, so that training and scoring see what the device sees."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...bundle import EncoderSpec, SamplerSpec
from ...runtime import engines
from ...runtime import sampler as sampling
from ...runtime.sampler import Candidates, Sampler
from ...runtime.video import Frame, read_candidates
from .. import vgg16
from ..checkpoint import Checkpoint
from .dataset import FRAME_SIZE, FRAMES, MAX_CANDIDATES, StoredClip
from .network import MEAN, POOLED, STD

KEEP_EVERY = 20  # clips: picking is slow, and may be stopped
VGG_SIZE = 96  # pixels: the pocket recipe's
VGG_MEAN = [103.939, 116.779, 123.68]  # BGR, Oxford's

SAMPLER = SamplerSpec(
    keyframes=FRAMES,
    candidates=MAX_CANDIDATES,
    wavelet="haar",
    level=2,
    size=VGG_SIZE,
    channels="bgr",
    scale=1.0,
    mean=VGG_MEAN,
    std=[1.0, 1.0, 1.0],
)
ENCODER = EncoderSpec(
    frames=FRAMES,
    size=FRAME_SIZE,
    fit="stretch",
    resize=FRAME_SIZE,
    token_grid=list(POOLED),
    scale=1 / 255,
    mean=list(MEAN),
    std=list(STD),
)


def load_sampler(vgg: Path) -> Sampler:
    """The runtime's sampler over a VGG-16 safetensors file."""
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "vgg16.onnx"
        vgg16.write(graph, Checkpoint(vgg), VGG_SIZE)
        return Sampler(SAMPLER, engines.load(graph))


def pick(sampler: Sampler, clip: StoredClip, source: Path | None) -> tuple[int, ...]:
    """Positions of the 16 keyframes among a clip's candidates, from its file, or from its stored frames when None."""
    if source is not None:
        collected, _ = read_candidates(source, MAX_CANDIDATES, lambda: Candidates(SAMPLER, ENCODER))
    else:
        collected = Candidates(SAMPLER, ENCODER)
        for index in range(len(clip.jpegs)):
            collected.add(Frame(index, index / 30, clip.frame(index)))
    return tuple(sampler.pick(collected))


def with_picks(clips: Sequence[StoredClip], vgg: Path, cache: Path, footage: Path | None = None) -> list[StoredClip]:
    """The clips with their keyframes, picked once and kept in the cache until the sampler picks otherwise."""
    how = hashlib.sha256(repr(SAMPLER).encode() + Path(sampling.__file__).read_bytes()).hexdigest()
    path = cache / f"picks-{how[:8]}.json"
    known: dict[str, list[int]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    missing = [clip for clip in clips if _key(clip) not in known]
    if missing:
        sampler = load_sampler(vgg)
        for done, clip in enumerate(missing, 1):
            known[_key(clip)] = list(pick(sampler, clip, None if footage is None else footage / clip.name))
            if done % KEEP_EVERY == 0 or done == len(missing):
                path.write_text(json.dumps(known), encoding="utf-8")
    return [replace(clip, picks=tuple(known[_key(clip)])) for clip in clips]


def _key(clip: StoredClip) -> str:
    """A clip's name and a hash of its frames."""
    return f"{clip.name} {hashlib.sha256(b''.join(clip.jpegs)).hexdigest()[:12]}"
