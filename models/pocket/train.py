"""Training the pocket model: two phases, a command each.

    python -m svrt.models.pocket.train encoder --rim FOLDER
    python -m svrt.models.pocket.train decoder --rim FOLDER --out FOLDER

The first is mask-denoising on footage alone, then seeing: heads that are not shipped ask the encoder where ball and
ring are and what the shot was. The second freezes the encoder, as SV3.3B does, and teaches projector and LoRA to say
it. `decoder --denoised` leaves the seeing out, which is the paper's recipe to the letter; `decoder --after FOLDER` goes
on with finished weights, their encoder as it is; `decoder --folds 5` writes no weights and cross-validates over all
labelled clips instead. Ctrl-C keeps the last step; the same command goes on from there. The curve is `curve.tsv` beside
the checkpoints, in the cache.

`--device cuda` trains on a GPU, with as many processes as `--threads` says to feed it (not run on hardware yet).

With `OMP_WAIT_POLICY=PASSIVE` in the environment, threads sleep at OpenMP's barriers in place of spinning: on a machine
that does other things at the same time a step is up to 20 times faster.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch

from . import captions, evaluate, weights
from .dataset import (
    Sample,
    StoredClip,
    augmented_sample,
    clips_elsewhere,
    default_cache,
    plain_sample,
    real_clips,
    rendered_clips,
)
from .features import Features, variants
from .heads import attribute_classes
from .keyframes import with_picks
from .loader import ahead
from .network import pool, smollm_path
from .shot import OUTCOMES, Shot
from .trainer import PHASES, Batch, Phase, Trainer, save_model, save_state, stacked

REAL_SHARE, ELSEWHERE_SHARE = 0.38, 0.15  # of a batch while seeing; the rest is rendered
SPOKEN_REAL_SHARE, SPOKEN_ELSEWHERE_SHARE = 0.45, 0.22  # the same while speaking
BOARD_WEIGHT = 0.4  # how often a clip whose ball touches the board is drawn, against 1 (see the weights' card)
ABOVE_WEIGHT = 4.0  # the same, while speaking, of a ball from above (see the card)
FOOLING_WEIGHT = 2.5  # the same for a rendered miss whose ball seems to fall through the net
MADE_SHARE = 0.45  # of the shots drawn: at 0.54 to 0.59, as they come, the model said "made" when it could not tell
RENDERED, ELSEWHERE = 5000, 1200
SPOKEN_RENDERED, SPOKEN_ELSEWHERE = 2000, 900  # of these, what phase two sees: running the encoder on all is slow
NOTE_EVERY = 25  # steps
SAVE_EVERY_S = 30
WATCH_EVERY = 200
ALL_TOKENS_FROM = 0.92  # share of each round of "see" after which no token is left out
ALL_TOKENS_ROUND = 2  # from this round on (0 is the first) none is
RATE_AFTER = 0.4  # of the rate, where finished weights are gone on with
SPOKEN_BY = (Path(captions.__file__), Path(__file__))  # what is said of a clip, and how often it is drawn
RATES: dict[Phase, float] = {"denoise": 6e-4, "see": 6e-4, "speak": 1e-3}


@dataclass(frozen=True)
class Schedule:
    """Pace of one phase: rounds of so many steps each, every one at half the rate of the one before."""

    rounds: tuple[int, ...]
    rate: float

    @property
    def steps(self) -> int:
        """Steps in all."""
        return sum(self.rounds)

    def _place(self, step: int) -> tuple[int, float]:
        """Which round a step is in, and how far along it is there, from 0 to 1."""
        before = [sum(self.rounds[:k]) for k in range(len(self.rounds))]
        index = max(k for k, first in enumerate(before) if step >= first)
        return index, (step - before[index]) / self.rounds[index]

    def all_tokens_at(self, step: int) -> bool:
        """Whether a step of "see" reads every token: two thirds left out make a step three times as fast, but that is
        not how the encoder is used."""
        index, progress = self._place(step)
        return index >= ALL_TOKENS_ROUND or progress >= ALL_TOKENS_FROM

    def rate_at(self, step: int) -> float:
        """Learning rate: in each round a warm-up over the first twentieth, then half a cosine down to a fiftieth."""
        index, progress = self._place(step)
        rate = self.rate * 0.5**index
        if progress < 0.05:
            return rate * (0.05 + 0.95 * progress / 0.05)
        return rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - 0.05) / 0.95)))


def drawn_as_often(
    shots: Sequence[Shot | None], fooling: Sequence[bool] | None = None, *, above: float = 1.0
) -> np.ndarray:
    """The chance of each clip to be drawn, float64 [N], sum 1.

    `fooling` marks misses that look like made shots; `above` is how often a ball from above is drawn, against 1.
    """
    chance = np.array([BOARD_WEIGHT if shot and "backboard" in shot.contacts else 1.0 for shot in shots])
    chance[np.array([shot is not None and shot.entry == "top" for shot in shots])] *= above
    if fooling is not None:
        chance[np.array(fooling)] *= FOOLING_WEIGHT
    made, missed = (np.array([shot is not None and shot.outcome == what for shot in shots]) for what in OUTCOMES)
    if made.any() and missed.any():
        shown = chance[made | missed].sum()
        chance[made] *= MADE_SHARE * shown / chance[made].sum()
        chance[missed] *= (1 - MADE_SHARE) * shown / chance[missed].sum()
    return np.asarray(chance / chance.sum())


@dataclass(frozen=True)
class Data:
    """Training clips: real, rendered, and without a hoop."""

    real: Sequence[StoredClip]
    rendered: Sequence[StoredClip]
    elsewhere: Sequence[StoredClip]

    @cached_property
    def _chance_of_real(self) -> np.ndarray:
        return drawn_as_often([clip.shot for clip in self.real])

    @cached_property
    def _chance_of_rendered(self) -> np.ndarray:
        fooling = [
            clip.shot is not None and clip.shot.outcome == "miss" and clip.seems_made() for clip in self.rendered
        ]
        return drawn_as_often([clip.shot for clip in self.rendered], fooling)

    def batch(self, key: tuple[int, ...], size: int) -> Batch:
        """The augmented samples that belong to `key`, the same whenever it is asked."""
        rng = np.random.default_rng(key)
        return Batch.of([self._sample(rng) for _ in range(size)])

    def _sample(self, rng: np.random.Generator) -> Sample:
        kind = rng.random()
        if kind < ELSEWHERE_SHARE:
            return augmented_sample(self.elsewhere[int(rng.integers(len(self.elsewhere)))], rng)
        if kind < ELSEWHERE_SHARE + REAL_SHARE:
            return augmented_sample(self.real[int(rng.choice(len(self.real), p=self._chance_of_real))], rng)
        return augmented_sample(self.rendered[int(rng.choice(len(self.rendered), p=self._chance_of_rendered))], rng)


@torch.no_grad()
def seen_accuracy(trainer: Trainer, clips: Sequence[StoredClip]) -> dict[str, float]:
    """Share of clips whose attributes the two heads name correctly, without augmentation."""
    right: dict[str, float] = {}
    trainer.describer.eval()
    trainer.heads.eval()
    for clip in clips:
        sample = plain_sample(clip)
        with trainer.mixed_precision():
            pooled = pool(trainer.describer.encoder(stacked([sample]).to(trainer.device)))
            answers = trainer.heads.attributes(pooled, trainer.describer.projector(pooled))
        truth = attribute_classes(sample)
        for kind, logits in zip(("judged", "spoken"), answers, strict=True):
            for name in ("hoop", "outcome", "entry", "board", "exit"):
                hit = int(logits[name].argmax()) == truth[name]
                right[f"{kind}_{name}"] = right.get(f"{kind}_{name}", 0.0) + hit / len(clips)
    return right


class Log:
    """The curve: one line per note in `curve.tsv`, and on the terminal."""

    def __init__(self, path: Path) -> None:
        self._path, self._sums, self._count = path, dict[str, float](), 0
        path.parent.mkdir(parents=True, exist_ok=True)

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
    trainer: Trainer, step: Callable[[], dict[str, float]], steps: int, checkpoint: Path | None, log: Log
) -> Iterator[int]:
    """Take `step` until the phase is done, giving the step number after each; saves as it goes, and on Ctrl-C."""
    saved = time.perf_counter()
    started = saved - trainer.seconds
    try:
        while trainer.step < steps:
            log.add(step())
            trainer.seconds = time.perf_counter() - started
            if trainer.step % NOTE_EVERY == 0:
                log.note(trainer)
            if checkpoint is not None and time.perf_counter() - saved >= SAVE_EVERY_S:
                save_state(trainer, checkpoint)
                saved = time.perf_counter()
            yield trainer.step
    except KeyboardInterrupt:
        if checkpoint is not None:
            save_state(trainer, checkpoint)
            print(f"stopped after step {trainer.step} of phase {trainer.phase}; the same command goes on from there")
        raise


def train_encoder(args: argparse.Namespace, run: Path) -> None:
    """Phase one: "denoise", then "see". Leaves `denoised.pt` and `seen.pt` in the run's folder."""
    data, validation = load_data(args), load_real(args, "val")
    trainer = Trainer(weights.new_describer(smollm_path(), torch.bfloat16), args.seed, device=args.device)
    checkpoint, log = run / "encoder.pt", Log(run / "curve.tsv")
    if checkpoint.exists():
        trainer.restore(torch.load(checkpoint, weights_only=True, map_location=args.device))
        print(f"going on from step {trainer.step} of phase {trainer.phase} ({checkpoint})")
    if trainer.phase == "denoise":
        run_encoder_phase(trainer, data, [args.denoise_steps], args, checkpoint, log, [])
        save_model(trainer, run / "denoised.pt")
        trainer.enter("see")
    run_encoder_phase(trainer, data, args.see_steps, args, checkpoint, log, validation)
    trainer.average.settle()
    log.note(trainer, seen_accuracy(trainer, validation))
    save_model(trainer, run / "seen.pt")


def run_encoder_phase(
    trainer: Trainer,
    data: Data,
    rounds: Sequence[int],
    args: argparse.Namespace,
    checkpoint: Path,
    log: Log,
    watch: Sequence[StoredClip],
) -> None:
    """The rest of "denoise" or "see"; `watch` is scored now and then."""
    schedule, key = Schedule(tuple(rounds), RATES[trainer.phase]), (trainer.seed, PHASES.index(trainer.phase))
    steps = range(trainer.step, schedule.steps)
    batches = ahead(lambda step: data.batch((*key, step), args.batch), steps, processes(args))

    def step() -> dict[str, float]:
        every = args.all_tokens or schedule.all_tokens_at(trainer.step)
        return trainer.advance(next(batches), every, schedule.rate_at(trainer.step))

    try:
        for done in run_phase(trainer, step, schedule.steps, checkpoint, log):
            if watch and done % WATCH_EVERY == 0:
                log.note(trainer, seen_accuracy(trainer, watch))
    finally:
        batches.close()  # type: ignore[attr-defined]


def train_decoder(args: argparse.Namespace, run: Path) -> None:
    """Phase two: "speak" on the frozen encoder; writes the weights and scores them."""
    name = "spoken" if args.after else "denoised" if args.denoised else "seen"
    begins = args.after or after_phase_one(run, name)
    trainer = trainer_after(begins, args)
    checkpoint = run / f"decoder-{name}-{digest_of_speech(begins, args)}.pt"
    data = load_data(args)
    features = {
        "real": variants(trainer, data.real, args.variants, run, processes(args)),
        **features_of_made(trainer, data, args, run),
    }
    if checkpoint.exists():
        trainer.restore(torch.load(checkpoint, weights_only=True, map_location=args.device))
        print(f"going on from step {trainer.step} of phase speak ({checkpoint})")
    speak(trainer, features, args, checkpoint, Log(run / f"curve-{name}.tsv"))
    weights.save(trainer.describer, args.out, args.vgg)
    checkpoint.unlink(missing_ok=True)
    describer = weights.load_describer(args.out, smollm_path())
    evaluate.report_all(describer, evaluate.unseen(args.rim, args.cache, args.vgg, args.threads))


def speak(
    trainer: Trainer, features: dict[str, Features], args: argparse.Namespace, checkpoint: Path | None, log: Log
) -> None:
    """The rest of "speak", to the averaged weights."""
    schedule = Schedule((args.speak_steps,), RATES["speak"] * (RATE_AFTER if args.after else 1))
    chances = {kind: drawn_as_often(views.shots, above=ABOVE_WEIGHT) for kind, views in features.items()}

    def step() -> dict[str, float]:
        rng = np.random.default_rng((trainer.seed, PHASES.index("speak"), trainer.step))
        chance = (SPOKEN_REAL_SHARE, 1 - SPOKEN_REAL_SHARE - SPOKEN_ELSEWHERE_SHARE, SPOKEN_ELSEWHERE_SHARE)
        kinds = rng.choice(("real", "rendered", "elsewhere"), args.batch, p=chance).tolist()
        places = [int(rng.choice(len(chances[kind]), p=chances[kind])) for kind in kinds]
        pooled = torch.stack([features[kind].pooled[k].float() for kind, k in zip(kinds, places, strict=True)])
        shots = [features[kind].shots[k] for kind, k in zip(kinds, places, strict=True)]
        return trainer.advance_speech(pooled, shots, schedule.rate_at(trainer.step))

    for _ in run_phase(trainer, step, args.speak_steps, checkpoint, log):
        pass
    trainer.average.settle()


def cross_validate(args: argparse.Namespace, run: Path) -> None:
    """Phase two again for each fold of all labelled clips, scored on the clips that it left out.

    The encoder is the same in all folds, and its seeing had the labels of the training clips: what is measured is how
    well the sentences carry over, and for clips of the training split it is on the kind side. Answers are kept beside
    the checkpoints, so that an interrupted run goes on with the next fold.
    """
    encoder = after_phase_one(run, "seen")
    data, validation = load_data(args), load_real(args, "val")
    clips = [*data.real, *validation]
    fold_of = np.random.default_rng(args.seed).permutation(len(clips)) % args.folds
    path = run / f"folds-{args.folds}-{digest_of_speech(encoder, args)}.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for fold in range(args.folds):
        if any(answer["fold"] == fold for answer in done):
            continue
        trainer = trainer_after(encoder, args)
        real = variants(trainer, clips, args.variants, run, processes(args))
        features = {
            "real": real.of([clip.name for clip, its in zip(clips, fold_of, strict=True) if its != fold]),
            **features_of_made(trainer, data, args, run),
        }
        speak(trainer, features, args, None, Log(run / f"curve-fold-{fold}.tsv"))
        held_out = [clip for clip, its in zip(clips, fold_of, strict=True) if its == fold]
        with trainer.mixed_precision():
            said = evaluate.answers(trainer.describer, held_out)
        done += [{"fold": fold, "name": a.name, "text": a.text, "logits": a.logits} for a in said]
        path.write_text("".join(json.dumps(answer) + "\n" for answer in done))
    shots = {clip.name: clip.shot for clip in clips}
    for title, split in (("all clips", ""), ("clips of the training split", "train/"), ("of validation", "val/")):
        said = [
            evaluate.Answer(a["name"], shots[a["name"]], a["text"], logits=tuple(a["logits"]))
            for a in done
            if a["name"].startswith(split)
        ]
        evaluate.report(f"{args.folds}-fold cross-validation, {title}", said)
        print(f"  temperature of the first word: {evaluate.fitted_temperature(said):.2f}")


def digest_of_speech(begins: Path, args: argparse.Namespace) -> str:
    """Of what "speak" begins with (`trainer_after`), the settings and the code: other steps are not gone on with."""
    settings = (args.seed, args.speak_steps, args.batch, args.variants)
    weighed = begins / weights.SUMS_NAME if begins.is_dir() else begins
    parts = [weighed.read_bytes(), repr(settings).encode(), *(source.read_bytes() for source in SPOKEN_BY)]
    return hashlib.sha256(b"".join(parts)).hexdigest()[:12]


def features_of_made(trainer: Trainer, data: Data, args: argparse.Namespace, run: Path) -> dict[str, Features]:
    """What the encoder sees in the rendered clips and in those without a hoop that phase two reads."""
    return {
        "rendered": variants(trainer, data.rendered[:SPOKEN_RENDERED], 1, run, processes(args)),
        "elsewhere": variants(trainer, data.elsewhere[:SPOKEN_ELSEWHERE], 1, run, processes(args)),
    }


def processes(args: argparse.Namespace) -> int:
    """How many feed the training: none but a thread where it needs the processors itself."""
    return 0 if args.device == "cpu" else int(args.threads)


def after_phase_one(run: Path, name: str) -> Path:
    """Where phase one left its weights, "denoised" or "seen"."""
    path = run / f"{name}.pt"
    if not path.exists():
        raise SystemExit(f"{path} is not there: train the encoder first (python -m svrt.models.pocket.train encoder)")
    return path


def trainer_after(begins: Path, args: argparse.Namespace) -> Trainer:
    """A trainer about to speak, with what phase one left in the file `begins`, or finished weights of that folder."""
    torch.manual_seed(args.seed)
    trainer = Trainer(weights.new_describer(smollm_path(), torch.bfloat16), args.seed, device=args.device)
    if begins.is_dir():
        weights.load_into(trainer.describer, begins)
    else:
        state = torch.load(begins, weights_only=True, map_location=args.device)
        trainer.describer.load_state_dict(state["model"], strict=False)
    trainer.enter("speak")
    return trainer


def load_real(args: argparse.Namespace, split: str) -> list[StoredClip]:
    """The labelled clips of a split, with the keyframes that the runtime's sampler picks."""
    return with_picks(real_clips(args.rim, split, args.cache, args.threads), args.vgg, args.cache, args.rim)


def load_data(args: argparse.Namespace) -> Data:
    """Every clip to train on, from the cache, or made now."""
    return Data(
        load_real(args, "train"),
        rendered_clips(0, RENDERED, args.cache, args.threads),
        clips_elsewhere(0, ELSEWHERE, args.cache, args.threads),
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the pocket model on rim-camera clips.")
    parser.add_argument("phase", choices=("encoder", "decoder"))
    parser.add_argument("--rim", type=Path, required=True, help="folder with labels.tsv, train/ and val/")
    parser.add_argument("--out", type=Path, default=weights.WEIGHTS, help="folder for the weights")
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), help="folder for decoded clips and the checkpoints"
    )
    parser.add_argument("--vgg", type=Path, default=weights.WEIGHTS / weights.VGG_NAME, help="the sampler's VGG-16")
    parser.add_argument("--denoise-steps", type=int, default=200)
    parser.add_argument("--see-steps", type=int, nargs="+", default=[3000, 2000, 700], help="of each round")
    parser.add_argument("--all-tokens", action="store_true", help="leave none out while seeing: for a GPU")
    parser.add_argument("--speak-steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=8, help="clips per step")
    parser.add_argument("--variants", type=int, default=12, help="augmentations of each real clip that speaking sees")
    begins = parser.add_mutually_exclusive_group()
    begins.add_argument("--denoised", action="store_true", help="speak after denoising alone, without seeing")
    begins.add_argument("--after", type=Path, help="folder of finished weights to speak on from, without phase one")
    begins.add_argument("--folds", type=int, default=0, help="cross-validate in this many parts, and write no weights")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, or another that PyTorch knows")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    cv2.setNumThreads(1)
    run = args.cache / f"training-{args.seed}"
    if args.phase == "encoder":
        train_encoder(args, run)
    elif args.folds:
        cross_validate(args, run)
    else:
        train_decoder(args, run)


if __name__ == "__main__":
    main()
