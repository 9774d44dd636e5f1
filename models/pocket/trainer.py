"""The model in training: what each phase optimises, one step of it, and everything needed to go on after a stop.

"denoise" trains the encoder on footage alone. "see" trains encoder and projector on what the clips show, with heads
that are not shipped. "speak" freezes the encoder and trains projector and LoRA on sentences. After "see" and after
"speak" the weights are replaced by their moving average.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from . import weights
from .captions import caption
from .dataset import Sample
from .denoise import Denoiser
from .heads import SeeingHeads, Targets
from .network import Describer, Speech, Vocabulary, moving_tokens, pool
from .shot import Shot

Phase = Literal["denoise", "see", "speak"]
PHASES: tuple[Phase, ...] = ("denoise", "see", "speak")

MOVING_TOKENS = 384  # of 1152, while most of the picture is left out
ATTRIBUTE_WEIGHT = 4.0  # of a caption token that carries an attribute, against 1 for the wording
AVERAGING = 0.99  # of the weights' moving average


class Average:
    """The moving average of some parameters, which forgets its beginning while it is young."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = list(parameters)
        self.means = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Take in the parameters as they are after `step` steps."""
        keep = min(AVERAGING, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.means, [p.detach() for p in self.parameters], 1 - keep)

    @torch.no_grad()
    def settle(self) -> None:
        """Give the parameters their averages."""
        for parameter, mean in zip(self.parameters, self.means, strict=True):
            parameter.copy_(mean)


@dataclass(frozen=True)
class Batch:
    """Clips of one step: `frames` uint8 [B, 16, 192, 192, 3], and what they show."""

    frames: Tensor
    targets: Targets

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Batch:
        return cls(stacked(samples), Targets.of(samples))

    def to(self, device: torch.device) -> Batch:
        return Batch(self.frames.to(device), self.targets.to(device))


class Trainer:
    """The model, its heads, its optimiser and how far it has come."""

    def __init__(self, describer: Describer, seed: int, phase: Phase = "denoise", device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.describer, self.seed = describer.to(self.device), seed
        self.heads = SeeingHeads(describer.projector.norm.normalized_shape[0]).to(self.device)
        self.enter(phase)

    def mixed_precision(self) -> torch.autocast:
        """Products in bfloat16, as all phases are trained."""
        return torch.autocast(self.device.type, torch.bfloat16)

    def _modules(self) -> list[torch.nn.Module]:
        d = self.describer
        if self.phase == "denoise":
            return [d.encoder, self.denoiser]
        return [d.encoder, d.projector, self.heads] if self.phase == "see" else [d.projector, d.decoder]

    def enter(self, phase: Phase) -> None:
        """Start a phase with a fresh optimiser."""
        self.phase, self.step, self.seconds = phase, 0, 0.0
        self.denoiser = Denoiser(self.describer.encoder).to(self.device)
        parameters = [p for module in self._modules() for p in weights.trainable(module)]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))
        self.average = Average(parameters)

    def advance(self, batch: Batch, all_tokens: bool, rate: float) -> dict[str, float]:
        """One optimiser step of "denoise" or "see"; the losses. `all_tokens`: while seeing, leave none out."""
        batch, generator = batch.to(self.device), torch.Generator().manual_seed(self.seed + self.step)
        with self.mixed_precision():
            self._begin(rate)
            if self.phase == "denoise":
                kept = moving_tokens(batch.frames, MOVING_TOKENS, generator)
                loss = self.denoiser.loss(self.describer.encoder, batch.frames, kept, generator)
                parts = {"denoised": float(loss.detach())}
            else:
                loss, parts = self._see(batch, None if all_tokens else generator)
        self._end(loss)
        if self.phase == "denoise":
            self.denoiser.follow(self.describer.encoder)
        return parts

    def advance_speech(self, pooled: Tensor, shots: Sequence[Shot | None], rate: float) -> dict[str, float]:
        """One optimiser step of "speak" on pooled tokens [B, 32, 256] of the frozen encoder."""
        rng = np.random.default_rng((self.seed, 3, self.step))
        speeches = [speech(shot, self.describer.vocabulary, rng) for shot in shots]
        with self.mixed_precision():
            self._begin(rate)
            loss = self.describer.caption_loss(pooled.to(self.device), speeches)
        self._end(loss)
        return {"caption": float(loss.detach())}

    def _begin(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(hash((self.seed, PHASES.index(self.phase), self.step)) % 2**31)
        for module in self._modules():
            module.train()

    def _end(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.average.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        self.average.follow(self.step)

    def _see(self, batch: Batch, left_out: torch.Generator | None) -> tuple[Tensor, dict[str, float]]:
        """The losses on the tokens that move, drawn with `left_out`, or on all."""
        kept = None if left_out is None else moving_tokens(batch.frames, MOVING_TOKENS, left_out)
        tokens = self.describer.encoder(batch.frames, kept)
        pooled = pool(tokens, kept)
        return self.heads.loss(tokens, kept, pooled, self.describer.projector(pooled), batch.targets)

    def state(self) -> dict[str, Any]:
        """Everything that is needed to go on; what is frozen is left out: the base decoder, in "speak" the encoder."""
        speaking = self.phase == "speak"
        model = {
            name: parameter
            for name, parameter in self.describer.named_parameters()
            if parameter.requires_grad and not (speaking and name.startswith("encoder."))
        }
        return {
            "model": model,
            "heads": self.heads.state_dict(),
            "denoiser": self.denoiser.state_dict() if self.phase == "denoise" else {},
            "average": self.average.means,
            "optimizer": self.optimizer.state_dict(),
            "progress": {"phase": self.phase, "step": self.step, "seconds": self.seconds, "seed": self.seed},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a `state`."""
        self.describer.load_state_dict(state["model"], strict=False)
        self.heads.load_state_dict(state["heads"])
        self.enter(state["progress"]["phase"])
        self.step, self.seconds = state["progress"]["step"], state["progress"]["seconds"]
        if self.phase == "denoise":
            self.denoiser.load_state_dict(state["denoiser"])
        self.average.means = list(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])


def save_state(trainer: Trainer, path: Path) -> None:
    """Write the checkpoint whole or not at all."""
    _save(trainer.state(), path)


def save_model(trainer: Trainer, path: Path) -> None:
    """Write what phase one leaves to phase two, encoder and projector, whole or not at all."""
    model = {name: p for name, p in trainer.state()["model"].items() if not name.startswith("decoder.")}
    _save({"model": model}, path)


def _save(state: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def stacked(samples: Sequence[Sample]) -> Tensor:
    """uint8 [B, 16, 192, 192, 3]."""
    return torch.from_numpy(np.stack([sample.frames for sample in samples]))


def speech(shot: Shot | None, vocabulary: Vocabulary, rng: np.random.Generator) -> Speech:
    """A caption in llama.cpp's tokens, ended, the words that carry attributes weighing more."""
    written = caption(shot, rng if rng.random() < 0.5 else None)
    ids, place, counts = vocabulary.ids(written.text), 0, []
    for piece in vocabulary.pieces(ids):
        start, place = place, place + len(piece)
        carries = any(start < end and place > begin for begin, end in written.spans)
        counts.append(ATTRIBUTE_WEIGHT if carries else 1.0)
    return Speech((*ids, vocabulary.end), (*counts, 1.0))
