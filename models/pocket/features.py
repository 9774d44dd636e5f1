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
from .loader import ahead
from .network import VIDEO_TOKENS, WIDTH, Describer, pool
from .shot import Shot
from .trainer import Trainer, stacked

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


def variants(trainer: Trainer, clips: Sequence[StoredClip], count: int, cache: Path, processes: int = 0) -> Features:
    """`count` augmented views of each clip through the encoder; kept in `cache` under a hash of encoder and clips."""
    path = cache / f"features-{_digest(trainer.describer, clips, count)}.npz"
    if not path.exists():
        _write(path, trainer, clips, count, processes)
    with np.load(path) as kept:
        pooled, mirrored = torch.from_numpy(kept["pooled"]), kept["mirrored"]
    shown = [clip for clip in clips for _ in range(count)]
    assert pooled.shape == (len(shown), VIDEO_TOKENS, WIDTH)
    shots = [
        clip.shot and (clip.shot.mirrored() if turned else clip.shot)
        for clip, turned in zip(shown, mirrored, strict=True)
    ]
    return Features(pooled, tuple(shots), tuple(clip.name for clip in shown))


def _write(path: Path, trainer: Trainer, clips: Sequence[StoredClip], count: int, processes: int) -> None:
    keys = [(clip, k) for clip in clips for k in range(count)]

    def seen(batch: int) -> tuple[Tensor, list[bool]]:
        """Frames of a batch's views uint8 [B, 16, 192, 192, 3], and which of them are mirrored."""
        some = keys[batch * BATCH : (batch + 1) * BATCH]
        samples = [augmented_sample(clip, np.random.default_rng(_seed(clip.name, k))) for clip, k in some]
        return stacked(samples), [s.shot != clip.shot for s, (clip, _) in zip(samples, some, strict=True)]

    rows, mirrored = list[Tensor](), list[bool]()
    trainer.describer.encoder.eval()
    for frames, turned in ahead(seen, range(-(-len(keys) // BATCH)), processes):
        with torch.no_grad(), trainer.mixed_precision():
            rows.append(pool(trainer.describer.encoder(frames.to(trainer.device))).half().cpu())
        mirrored += turned
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, pooled=torch.cat(rows).numpy(), mirrored=np.array(mirrored))
    partial.replace(path)


def _seed(name: str, variant: int) -> list[int]:
    return [variant, *hashlib.sha256(name.encode()).digest()[:8]]


def _digest(describer: Describer, clips: Sequence[StoredClip], count: int) -> str:
    digest = hashlib.sha256(str(count).encode())
    for tensor in describer.encoder.state_dict().values():
        digest.update(tensor.detach().float().contiguous().numpy().tobytes())
    for clip in clips:
        digest.update(hashlib.sha256(b"".join(clip.jpegs)).digest() + repr((clip.name, clip.picks)).encode())
    return digest.hexdigest()[:16]
