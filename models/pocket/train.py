"""Training the pocket model, in two phases and one command.

    python -m svrt.models.pocket.train --rim FOLDER --out FOLDER

Phase "see": the encoder from scratch, with heads that ask where ball and ring are and what the shot was; for the
most part on the moving half of the tokens. Phase "speak": the encoder is frozen; projector and LoRA learn to say
it. Ctrl-C keeps the last step; the same command goes on from there. The curve is `curve.tsv` beside the checkpoint.

With `OMP_WAIT_POLICY=PASSIVE` in the environment, threads sleep at OpenMP's barriers in place of spinning: on a machine
that does other things at the same time a step is up to 20 times faster.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from . import evaluate, weights
from .captions import caption
from .dataset import (
    Sample,
    StoredClip,
    augmented_sample,
    default_cache,
    plain_sample,
    real_clips,
    rendered_clips,
)
from .heads import SeeingHeads, Targets, attribute_classes
from .network import Describer, Speech, Vocabulary, moving_tokens, pool, smollm_path

Phase = Literal["see", "speak"]
PHASES: tuple[Phase, ...] = ("see", "speak")

MOVING_TOKENS = 512  # of 1152, while most of the picture is left out
ALL_TOKENS_FROM = 0.9  # share of phase "see" after which no token is left out
ATTRIBUTE_WEIGHT = 4.0  # of a caption token that carries an attribute, against 1 for the wording
SAVE_EVERY = 25  # steps
LOOK_AHEAD = 4  # batches prepared while a step runs


@dataclass(frozen=True)
class Schedule:
    """Length and pace of one phase; `minutes`, when given, replaces the step count."""

    steps: int
    batch: int
    rate: float
    minutes: float | None = None

    def progress(self, step: int, seconds: float) -> float:
        """Share of the phase that is done, from its step count or its clock: 0 to 1."""
        return min(1.0, seconds / (60 * self.minutes) if self.minutes else step / self.steps)

    def rate_at(self, progress: float) -> float:
        """Learning rate: a warm-up over the first twentieth, then half a cosine down to a fiftieth."""
        if progress < 0.05:
            return self.rate * (0.05 + 0.95 * progress / 0.05)
        return self.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - 0.05) / 0.95)))


@dataclass(frozen=True)
class Data:
    """Training clips; `real_share` of each batch is drawn from the real ones."""

    real: Sequence[StoredClip]
    rendered: Sequence[StoredClip]
    real_share: float = 0.35

    def batch(self, key: tuple[int, ...], size: int) -> list[Sample]:
        """The augmented samples that belong to `key`, the same whenever it is asked."""
        rng = np.random.default_rng(key)
        samples = []
        for _ in range(size):
            clips = self.real if self.real and rng.random() < self.real_share else self.rendered
            samples.append(augmented_sample(clips[int(rng.integers(len(clips)))], rng))
        return samples


def prepared(make: Callable[[int], list[Sample]], first: int) -> Iterator[list[Sample]]:
    """Batches `make(first)`, `make(first + 1)`, … endlessly, made ahead in a thread."""
    with ThreadPoolExecutor(1) as pool_:
        waiting = [pool_.submit(make, first + k) for k in range(LOOK_AHEAD)]
        following = first + LOOK_AHEAD
        try:
            while True:
                waiting.append(pool_.submit(make, following))
                following += 1
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


class Trainer:
    """The model, its heads, its optimiser and how far it has come."""

    def __init__(self, describer: Describer, seed: int) -> None:
        self.describer, self.seed = describer, seed
        self.heads = SeeingHeads(describer.projector.norm.normalized_shape[0])
        self.phase: Phase = "see"
        self.step, self.seconds = 0, 0.0
        self.optimizer = self._new_optimizer()

    def _modules(self) -> list[torch.nn.Module]:
        d = self.describer
        return [d.encoder, d.projector, self.heads] if self.phase == "see" else [d.projector, d.decoder]

    def _new_optimizer(self) -> torch.optim.AdamW:
        parameters = [p for module in self._modules() for p in weights.trainable(module)]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98))

    def enter(self, phase: Phase) -> None:
        """Start a phase with a fresh optimiser."""
        self.phase, self.step, self.seconds = phase, 0, 0.0
        self.optimizer = self._new_optimizer()

    def advance(self, samples: Sequence[Sample], progress: float, rate: float) -> dict[str, float]:
        """One optimiser step; the losses."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(hash((self.seed, PHASES.index(self.phase), self.step)) % 2**31)
        for module in self._modules():
            module.train()
        with torch.autocast("cpu", torch.bfloat16):
            loss, parts = self._see(samples, progress) if self.phase == "see" else self._speak(samples)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        parameters = [p for module in self._modules() for p in weights.trainable(module)]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        return parts

    def _see(self, samples: Sequence[Sample], progress: float) -> tuple[Tensor, dict[str, float]]:
        frames, kept = stacked(samples), None
        if progress < ALL_TOKENS_FROM:
            kept = moving_tokens(frames, MOVING_TOKENS, torch.Generator().manual_seed(self.seed + self.step))
        tokens = self.describer.encoder(frames, kept)
        pooled = pool(tokens, kept)
        return self.heads.loss(tokens, kept, pooled, self.describer.projector(pooled), Targets.of(samples))

    def _speak(self, samples: Sequence[Sample]) -> tuple[Tensor, dict[str, float]]:
        self.describer.encoder.eval()
        with torch.no_grad():
            pooled = pool(self.describer.encoder(stacked(samples)))
        rng = np.random.default_rng((self.seed, 3, self.step))
        speeches = [speech(sample, self.describer.vocabulary, rng) for sample in samples]
        loss = self.describer.caption_loss(pooled, speeches)
        return loss, {"caption": float(loss.detach())}

    def state(self) -> dict[str, Any]:
        """Everything that is needed to go on; the frozen base decoder is left out."""
        model = {n: p for n, p in self.describer.named_parameters() if p.requires_grad}
        return {
            "model": model,
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": {"phase": self.phase, "step": self.step, "seconds": self.seconds, "seed": self.seed},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a `state`."""
        self.enter(state["progress"]["phase"])
        self.step, self.seconds = state["progress"]["step"], state["progress"]["seconds"]
        self.describer.load_state_dict(state["model"], strict=False)
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])


def stacked(samples: Sequence[Sample]) -> Tensor:
    """uint8 [B, 16, 192, 192, 3]."""
    return torch.from_numpy(np.stack([sample.frames for sample in samples]))


def speech(sample: Sample, vocabulary: Vocabulary, rng: np.random.Generator) -> Speech:
    """A caption in llama.cpp's tokens, ended, the words that carry attributes weighing more."""
    written = caption(sample.shot, rng if rng.random() < 0.5 else None)
    ids, place, counts = vocabulary.ids(written.text), 0, []
    for piece in vocabulary.pieces(ids):
        start, place = place, place + len(piece)
        carries = any(start < end and place > begin for begin, end in written.spans)
        counts.append(ATTRIBUTE_WEIGHT if carries else 1.0)
    return Speech((*ids, vocabulary.end), (*counts, 1.0))


@torch.no_grad()
def seen_accuracy(trainer: Trainer, clips: Sequence[StoredClip]) -> dict[str, float]:
    """Share of clips whose attributes the two heads name correctly, without augmentation."""
    right: dict[str, float] = {}
    trainer.describer.eval()
    trainer.heads.eval()
    for clip in clips:
        sample = plain_sample(clip)
        with torch.autocast("cpu", torch.bfloat16):
            pooled = pool(trainer.describer.encoder(stacked([sample])))
            answers = trainer.heads.attributes(pooled, trainer.describer.projector(pooled))
        truth = attribute_classes(sample)
        for kind, logits in zip(("judged", "spoken"), answers, strict=True):
            for name in ("outcome", "entry", "board"):
                hit = int(logits[name].argmax()) == truth[name]
                right[f"{kind}_{name}"] = right.get(f"{kind}_{name}", 0.0) + hit / len(clips)
    return right


class Log:
    """The curve: one line per note in `curve.tsv`, and on the terminal."""

    def __init__(self, path: Path) -> None:
        self._path, self._sums, self._count = path, dict[str, float](), 0

    def add(self, losses: dict[str, float]) -> None:
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1

    def note(self, trainer: Trainer, extra: dict[str, float] | None = None) -> None:
        """Write the means since the last note, and anything else."""
        values = {name: total / self._count for name, total in self._sums.items()} | (extra or {})
        line = f"{trainer.phase}\t{trainer.step}\t{trainer.seconds:.0f}\t"
        line += "\t".join(f"{name}={value:.3f}" for name, value in values.items())
        print(line, flush=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        self._sums, self._count = {}, 0


def run_phase(
    trainer: Trainer, data: Data, schedule: Schedule, checkpoint: Path, log: Log, watch: Sequence[StoredClip]
) -> None:
    """Train until the phase is done; on Ctrl-C save and raise again."""
    key = (trainer.seed, PHASES.index(trainer.phase))
    batches = prepared(lambda step: data.batch((*key, step), schedule.batch), trainer.step)
    started = time.perf_counter() - trainer.seconds
    try:
        while (progress := schedule.progress(trainer.step, trainer.seconds)) < 1.0:
            log.add(trainer.advance(next(batches), progress, schedule.rate_at(progress)))
            trainer.seconds = time.perf_counter() - started
            if trainer.step % SAVE_EVERY == 0:
                save_state(trainer, checkpoint)
                log.note(trainer)
            if trainer.phase == "see" and trainer.step % (8 * SAVE_EVERY) == 0 and trainer.step < schedule.steps:
                log.note(trainer, seen_accuracy(trainer, watch))
    except KeyboardInterrupt:
        save_state(trainer, checkpoint)
        print(f"stopped after step {trainer.step} of phase {trainer.phase}; the same command goes on from there")
        raise
    finally:
        batches.close()  # type: ignore[attr-defined]
    if trainer.phase == "see":
        log.note(trainer, seen_accuracy(trainer, watch))


def save_state(trainer: Trainer, path: Path) -> None:
    """Write the checkpoint whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(trainer.state(), partial)
    partial.replace(path)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the pocket model on rim-camera clips.")
    parser.add_argument("--rim", type=Path, required=True, help="folder with labels.tsv, train/ and val/")
    parser.add_argument("--out", type=Path, default=weights.WEIGHTS, help="folder for the weights")
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), help="folder for decoded clips and the checkpoint"
    )
    parser.add_argument("--vgg", type=Path, default=weights.WEIGHTS / weights.VGG_NAME, help="the sampler's VGG-16")
    parser.add_argument("--rendered", type=int, default=1500, help="rendered clips to train on")
    parser.add_argument("--see-steps", type=int, default=800)
    parser.add_argument("--speak-steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=8, help="clips per step")
    parser.add_argument("--minutes", type=float, help="train by the clock instead: 65 %% of it seeing, 35 %% speaking")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    cv2.setNumThreads(1)
    data = Data(
        real_clips(args.rim, "train", args.cache, args.threads),
        rendered_clips(0, args.rendered, args.cache, args.threads),
    )
    validation = real_clips(args.rim, "val", args.cache, args.threads)
    trainer = Trainer(weights.new_describer(smollm_path(), torch.bfloat16), args.seed)
    checkpoint, log = (
        args.cache / f"run-{args.seed}" / "checkpoint.pt",
        Log(args.cache / f"run-{args.seed}" / "curve.tsv"),
    )
    if checkpoint.exists():
        trainer.restore(torch.load(checkpoint, weights_only=True))
        print(f"going on from step {trainer.step} of phase {trainer.phase} ({checkpoint})")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    schedules = {
        "see": Schedule(args.see_steps, args.batch, 6e-4, args.minutes and 0.65 * args.minutes),
        "speak": Schedule(args.speak_steps, args.batch, 1e-3, args.minutes and 0.35 * args.minutes),
    }
    for phase in PHASES[PHASES.index(trainer.phase) :]:
        if phase != trainer.phase:
            trainer.enter(phase)
        run_phase(trainer, data, schedules[phase], checkpoint, log, validation)
    save_state(trainer, checkpoint)
    weights.save(trainer.describer, args.out, args.vgg)
    describer = weights.load_describer(args.out, smollm_path())
    evaluate.report_all(describer, evaluate.unseen(args.rim, args.cache, args.vgg, args.threads))


if __name__ == "__main__":
    main()
