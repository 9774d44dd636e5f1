"""Mask-denoising: the encoder learns from footage alone by predicting the features of what is hidden from it.

V-JEPA 2's pretraining (Assran et al., arXiv 2506.09985; the masks and the loss as in its public `pretrain-256px-16f`
configuration, which SV3.3B, arXiv 2507.17844, follows): two masks a clip, the context alone encoded, a narrow predictor
asked for the features of hidden patches, L1 to those of a teacher that is a moving average of the encoder. Different
here, for the size: momentum 0.99 in place of 0.99925, since a few hundred steps are taken and not many thousands; a
predictor of 4 layers and width 128; and teacher, encoder and predictor work on the third of a clip's patches that move
most, for nearly all of a rim camera's picture stands still.
"""

from __future__ import annotations

import copy
import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import VJEPA2Config
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Layer

from .dataset import GRID
from .network import TOKENS, WIDTH, Encoder, Rotation

MASKS = ((8, 0.15), (2, 0.7))  # blocks of a mask, and the share of the picture that each covers
ASPECTS = (0.75, 1.5)
LEAST = 16  # tokens that a mask leaves to be seen, and hides
MOST_DRAWS = 100  # of a mask, until one does
MOMENTUM = 0.99
PREDICTOR_WIDTH, PREDICTOR_LAYERS = 128, 4


def hidden_cells(blocks: int, scale: float, generator: torch.Generator) -> Tensor:
    """Cells of the patch grid that one mask covers: bool [12, 12].

    Every block covers `scale` of the picture at an aspect drawn from `ASPECTS`, through all of the clip's time.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    hidden = torch.zeros(GRID, GRID, dtype=torch.bool)
    for _ in range(blocks):
        aspect = uniform(*ASPECTS)
        height = min(GRID, round(GRID * math.sqrt(scale * aspect)))
        width = min(GRID, round(GRID * math.sqrt(scale / aspect)))
        top, left = round(uniform(0, GRID - height)), round(uniform(0, GRID - width))
        hidden[top : top + height, left : left + width] = True
    return hidden


def masks(kept: Tensor, blocks: int, scale: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Of the token numbers `kept` int64 [B, K]: those that are seen [B, S], and those that are asked for [B, A].

    Each clip has a mask of its own, which leaves at least `LEAST` on either side; as in V-JEPA, all are then cut to the
    least that one of them sees or hides.
    """
    sides = [_sides(numbers, blocks, scale, generator) for numbers in kept]
    return _cut([seen for seen, _ in sides]), _cut([asked for _, asked in sides])


def _sides(kept: Tensor, blocks: int, scale: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    for _ in range(MOST_DRAWS):
        hidden = hidden_cells(blocks, scale, generator).flatten()[kept % GRID**2]
        mixed = torch.randperm(len(kept), generator=generator)
        seen, asked = (kept[mixed[side[mixed]]] for side in (~hidden, hidden))
        if min(len(seen), len(asked)) >= LEAST:
            return seen, asked
    mixed = kept[torch.randperm(len(kept), generator=generator)]  # all that moves lies where blocks hide all or nothing
    return mixed[:LEAST], mixed[LEAST:]


def _cut(tokens: list[Tensor]) -> Tensor:
    least = min(len(numbers) for numbers in tokens)
    return torch.stack([numbers[:least].sort().values for numbers in tokens])


class Predictor(nn.Module):
    """Features at hidden tokens from those at seen ones: V-JEPA 2's predictor, narrow."""

    def __init__(self, config: VJEPA2Config) -> None:
        super().__init__()
        narrow: Any = copy.deepcopy(config)
        narrow.hidden_size = PREDICTOR_WIDTH
        heads = PREDICTOR_WIDTH // (config.hidden_size // config.num_attention_heads)
        self.inlet, self.outlet = nn.Linear(WIDTH, PREDICTOR_WIDTH), nn.Linear(PREDICTOR_WIDTH, WIDTH)
        self.blank = nn.Parameter(torch.zeros(PREDICTOR_WIDTH))
        self.layers = nn.ModuleList(
            VJEPA2Layer(narrow, hidden_size=PREDICTOR_WIDTH, num_attention_heads=heads) for _ in range(PREDICTOR_LAYERS)
        )
        self.norm = nn.LayerNorm(PREDICTOR_WIDTH, eps=1e-6)
        self._rotation = Rotation(config)  # heads are as wide as the encoder's, so its tables serve
        for layer in cast("list[Any]", self.layers):
            layer.attention.apply_rotary_embeddings = self._rotation
            layer.attention.get_position_ids = lambda *_, **__: None

    def forward(self, context: Tensor, seen: Tensor, asked: Tensor) -> Tensor:
        """`context` [B, S, 256] of tokens `seen` [B, S] to [B, A, 256] for tokens `asked` [B, A]."""
        blanks = self.blank.expand(*asked.shape, -1)
        hidden = torch.cat([self.inlet(context), blanks.to(context.dtype)], dim=1)
        self._rotation.keep(torch.cat([seen, asked], dim=1), hidden.device)
        for layer in self.layers:
            hidden = layer(hidden, None)[0]
        return cast(Tensor, self.outlet(self.norm(hidden[:, seen.shape[1] :])))


class Denoiser(nn.Module):
    """Teacher and predictor beside an encoder; `loss` trains encoder and predictor, `follow` moves the teacher."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.predictor = Predictor(encoder.model.config)
        self.teacher = Encoder()
        self.teacher.load_state_dict(encoder.state_dict())
        self.teacher.requires_grad_(False)

    def loss(self, encoder: Encoder, frames: Tensor, kept: Tensor, generator: torch.Generator) -> Tensor:
        """L1 between predicted and the teacher's normalised features, mean over both masks.

        Frames are uint8 [B, 16, 192, 192, 3]; `kept` int64 [B, K] are the tokens that take part.
        """
        features = torch.zeros(len(frames), TOKENS, WIDTH, device=frames.device)
        with torch.no_grad():
            taught = nn.functional.layer_norm(self.teacher(frames, kept).float(), (WIDTH,))
            features.scatter_(1, kept[..., None].expand_as(taught), taught)
        losses = []
        for blocks, scale in MASKS:
            seen, asked = (tokens.to(frames.device) for tokens in masks(kept.cpu(), blocks, scale, generator))
            predicted = self.predictor(encoder(frames, seen), seen, asked)
            wanted = features.gather(1, asked[..., None].expand(-1, -1, WIDTH))
            losses.append((predicted.float() - wanted).abs().mean())
        return torch.stack(losses).mean()

    @torch.no_grad()
    def follow(self, encoder: Encoder) -> None:
        """Move the teacher towards the encoder."""
        for mean, now in zip(self.teacher.parameters(), encoder.parameters(), strict=True):
            mean.lerp_(now, 1 - MOMENTUM)
