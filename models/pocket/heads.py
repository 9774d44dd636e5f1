"""What the encoder is asked for while it learns to see, and nobody asks for afterwards: these heads are not shipped.

A caption's loss alone teaches a small encoder next to nothing. The renderer knows where ball and ring are in every
frame, and every clip has labels, so the encoder first learns to answer those.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .dataset import Sample
from .network import POOLED, WIDTH
from .shot import ENTRIES, EXITS, OUTCOMES

VIEWS = ("front", "left", "right")
SIZES = {
    "outcome": len(OUTCOMES),
    "entry": len(ENTRIES),
    "board": 2,
    "rim": 2,
    "exit": len(EXITS),
    "view": len(VIEWS),
    "hoop": 2,
}
WEIGHTS = {"outcome": 1.0, "entry": 0.7, "board": 0.5, "rim": 0.3, "exit": 0.4, "view": 0.2, "hoop": 0.5}
ABSENT = -100  # class of an attribute that a clip does not have: no hoop, no shot


@dataclass(frozen=True)
class Targets:
    """Labels of a batch: class numbers int64 [B] per attribute, and the renderer's maps where `known` [B] is 1."""

    classes: dict[str, Tensor]
    maps: Tensor  # float32 [B, 1152, 2]: ball, ring
    path: Tensor  # float32 [B, 8, 3]
    known: Tensor

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Targets:
        rows = [attribute_classes(s) for s in samples]
        classes = {name: torch.tensor([row[name] for row in rows]) for name in SIZES}
        maps = np.stack([np.stack([s.ball.ravel(), s.ring.ravel()], axis=-1) for s in samples])
        path = np.stack([s.path for s in samples])
        known = torch.tensor([float(s.known) for s in samples])
        return cls(classes, torch.from_numpy(maps), torch.from_numpy(path), known)

    def to(self, device: torch.device) -> Targets:
        classes = {name: numbers.to(device) for name, numbers in self.classes.items()}
        return Targets(classes, self.maps.to(device), self.path.to(device), self.known.to(device))


def attribute_classes(sample: Sample) -> dict[str, int]:
    """The class number of each attribute of a sample; `ABSENT` for all but "hoop" where no hoop is in view."""
    shot = sample.shot
    if shot is None or sample.view is None:
        return {**dict.fromkeys(SIZES, ABSENT), "hoop": 0}
    return {
        "outcome": OUTCOMES.index(shot.outcome),
        "entry": ENTRIES.index(shot.entry),
        "board": int("backboard" in shot.contacts),
        "rim": int("rim" in shot.contacts),
        "exit": EXITS.index(shot.exit),
        "view": VIEWS.index(sample.view),
        "hoop": 1,
    }


class SeeingHeads(nn.Module):
    """Ball and ring per patch, the ball's path per tubelet, the shot's attributes per clip; then path and attributes
    once more from the projected tokens, so that what the decoder is given carries them too: the path of its tubelet
    from each token alone, the attributes from the mean of all."""

    def __init__(self, projected: int = 576) -> None:
        super().__init__()
        total = sum(SIZES.values())
        self.maps = nn.Linear(WIDTH, 2)
        nn.init.constant_(self.maps.bias, -4.0)
        self.watch = nn.Sequential(nn.Linear(POOLED[1] * POOLED[2] * WIDTH, 128), nn.GELU())
        self.path = nn.Linear(128, 3)
        self.judge = nn.Sequential(nn.Linear(POOLED[0] * 128, 256), nn.GELU(), nn.Dropout(0.2), nn.Linear(256, total))
        self.told = nn.Sequential(nn.LayerNorm(projected), nn.Linear(projected, 3))
        self.spoken = nn.Sequential(nn.LayerNorm(projected), nn.Linear(projected, total))

    def loss(
        self, tokens: Tensor, kept: Tensor | None, pooled: Tensor, projected: Tensor, targets: Targets
    ) -> tuple[Tensor, dict[str, float]]:
        """Sum of all losses, and each one's value; tokens [B, K, 256], pooled [B, 32, 256], projected [B, 32, W]."""
        wanted = targets.maps
        if kept is not None:
            wanted = wanted.gather(1, kept[..., None].expand(-1, -1, 2))
        maps = nn.functional.binary_cross_entropy_with_logits(
            self.maps(tokens).float(), wanted, reduction="none", pos_weight=wanted.new_tensor(4.0)
        )
        seen = self._watch(pooled)
        known = targets.known / targets.known.sum().clamp(min=1)
        told = self.told(projected).unflatten(1, (POOLED[0], -1))
        losses = {
            "maps": 8.0 * (maps.mean(dim=(1, 2)) * known).sum(),
            "path": (_path_loss(self.path(seen)[:, :, None], targets.path) * known).sum(),
            "told": (_path_loss(told, targets.path) * known).sum(),
        }
        for kind, logits in (("judged", self.judge(seen.flatten(1))), ("spoken", self.spoken(projected.mean(dim=1)))):
            losses[kind] = attribute_loss(logits.float(), targets)
        return torch.stack(list(losses.values())).sum(), {name: float(value.detach()) for name, value in losses.items()}

    def _watch(self, pooled: Tensor) -> Tensor:
        seen: Tensor = self.watch(pooled.reshape(len(pooled), POOLED[0], -1))
        return seen

    def attributes(self, pooled: Tensor, projected: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Logits per attribute from the path and from the projected tokens."""
        judged = self.judge(self._watch(pooled).flatten(1))
        return _split(judged), _split(self.spoken(projected.mean(dim=1)))


def _path_loss(answer: Tensor, path: Tensor) -> Tensor:
    """Distance from the true path [B, 8, 3] of answers [B, 8, N, 3], and of whether the ball is there: [B]."""
    wanted = path[:, :, None].expand_as(answer)
    off = nn.functional.smooth_l1_loss(answer[..., :2].float(), wanted[..., :2], reduction="none").sum(dim=-1)
    shown = nn.functional.binary_cross_entropy_with_logits(answer[..., 2].float(), wanted[..., 2], reduction="none")
    return (off * wanted[..., 2] + 0.3 * shown).mean(dim=(1, 2))


def _split(logits: Tensor) -> dict[str, Tensor]:
    return dict(zip(SIZES, torch.split(logits, list(SIZES.values()), dim=-1), strict=True))


def attribute_loss(logits: Tensor, targets: Targets) -> Tensor:
    """Weighted sum of the attributes' cross-entropies over the clips that have them, labels smoothed by 0.05."""
    parts = []
    for name, part in _split(logits).items():
        wanted = targets.classes[name]
        loss = nn.functional.cross_entropy(part, wanted, label_smoothing=0.05, reduction="sum", ignore_index=ABSENT)
        parts.append(WEIGHTS[name] * loss / (wanted != ABSENT).sum().clamp(min=1))
    return torch.stack(parts).sum()
