"""What the frozen encoder sees in clips, computed once: phase two reads it instead of running the encoder again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .dataset import StoredClip, augmented_sample
from .network import VIDEO_TOKENS, WIDTH, Describer, pool
from .shot import Shot
from .trainer import stacked

BATCH = 4


@dataclass(frozen=True)
class Features:
    """Pooled tokens float16 [N, 32, 256] of N views of clips, with what each shows and the clip's name."""

    pooled: Tensor
    shots: tuple[Shot | None, ...]
    names: tuple[str, ...]

    def of(self, names: Sequence[str]) -> Features:
        """The views of the clips with these names alone."""
        wanted = set(names)
        kept = [k for k, name in enumerate(self.names) if name in wanted]
        return Features(self.pooled[kept], tuple(self.shots[k] for k in kept), tuple(self.names[k] for k in kept))


def variants(describer: Describer, clips: Sequence[StoredClip], count: int, cache: Path) -> Features:
    """`count` augmented views of each clip through the encoder; kept in `cache` under a hash of encoder and clips."""
    keys = [(clip, k) for clip in clips for k in range(count)]
    samples = (augmented_sample(clip, np.random.default_rng(_seed(clip.name, k))) for clip, k in keys)
    path = cache / f"features-{_digest(describer, clips, count)}.npy"
    shots, rows = list[Shot | None](), list[Tensor]()
    known = np.load(path) if path.exists() else None
    batch = []
    describer.encoder.eval()
    for done, sample in enumerate(samples, 1):
        shots.append(sample.shot)
        if known is None:
            batch.append(sample)
            if len(batch) == BATCH or done == len(keys):
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                    rows.append(pool(describer.encoder(stacked(batch))).half())
                batch = []
    pooled = torch.cat(rows) if known is None else torch.from_numpy(known)
    assert pooled.shape == (len(keys), VIDEO_TOKENS, WIDTH)
    if known is None:
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, pooled.numpy())
        partial.replace(path)
    return Features(pooled, tuple(shots), tuple(clip.name for clip, _ in keys))


def _seed(name: str, variant: int) -> list[int]:
    return [variant, *hashlib.sha256(name.encode()).digest()[:8]]


def _digest(describer: Describer, clips: Sequence[StoredClip], count: int) -> str:
    digest = hashlib.sha256(str(count).encode())
    for tensor in describer.encoder.state_dict().values():
        digest.update(tensor.detach().float().contiguous().numpy().tobytes())
    for clip in clips:
        digest.update(hashlib.sha256(b"".join(clip.jpegs)).digest() + repr((clip.name, clip.picks)).encode())
    return digest.hexdigest()[:16]
