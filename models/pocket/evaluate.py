"""How often the pocket model's sentences are true, on clips it has never seen.

    python -m svrt.models.pocket.evaluate --rim FOLDER [--weights FOLDER]
    python -m svrt.models.pocket.evaluate --rim FOLDER --bundle FOLDER [--elsewhere FOLDER] [--agreement]

Greedy decoding, in PyTorch or by the runtime with an exported bundle; each sentence is read back by the parser and
compared attribute by attribute.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...bundle import Bundle
from ...runtime.pipeline import Pipeline
from . import weights
from .captions import PartialShot, parse
from .dataset import (
    RENDERED_HELD_OUT,
    StoredClip,
    clips_elsewhere,
    default_cache,
    plain_sample,
    read_labels,
    real_clips,
    rendered_clips,
    shot_of,
)
from .keyframes import with_picks
from .network import Describer, pool, smollm_path
from .shot import OUTCOMES, Shot

HELD_OUT_CLIPS = 100
FIRST_WORDS = {"make": "Made", "miss": "Missed", None: "No"}  # what a text begins with, by what happened: the recipe's

MEASURES: dict[str, Callable[[Shot | PartialShot], object]] = {
    "outcome": lambda shot: shot.outcome,
    "entry": lambda shot: shot.entry,
    "board touched": lambda shot: None if shot.contacts is None else "backboard" in shot.contacts,
    "exit": lambda shot: shot.exit,
}


@dataclass(frozen=True)
class Answer:
    """One clip: what happened, what was said, and how sure of the outcome the decoder was (by a bundle alone)."""

    name: str
    truth: Shot | None  # None: no hoop in view
    text: str
    confidence: float | None = None
    logits: tuple[float, ...] = ()  # of `FIRST_WORDS`, by PyTorch alone


def wilson(hits: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927): behaves at small counts and near 0 and 1."""
    share = hits / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, middle - half), min(1.0, middle + half)


@torch.no_grad()
def answers(describer: Describer, clips: Sequence[StoredClip]) -> list[Answer]:
    """Describe each clip greedily in float32."""
    describer.eval()
    said, device = [], next(describer.parameters()).device
    for clip in clips:
        pooled = pool(describer.encoder(torch.from_numpy(plain_sample(clip).frames[None]).to(device)))
        logits = tuple(describer.first_logits(pooled, list(FIRST_WORDS.values()))[0].tolist())
        said.append(Answer(clip.name, clip.shot, describer.describe(pooled)[0], logits=logits))
    return said


def bundle_answers(bundle: Path, clips: Mapping[Path, Shot | None]) -> list[Answer]:
    """Describe video files by the runtime, with an exported and quantized bundle, and print what runs its parts.

    Backends are not tried (no cache to remember it in), so that two machines run the same.
    """
    with Pipeline(Bundle.load(bundle)) as pipeline:
        print(f"\n{bundle}: {', '.join(f'{part}: {backend}' for part, backend in pipeline.backends.items())}")
        found = {path: pipeline.describe(path) for path in clips}
    return [Answer(path.name, clips[path], said.text, said.confidence) for path, said in found.items()]


def calibration_error(said: Sequence[Answer], bins: int = 10) -> float:
    """Expected calibration error of the outcome: |share right - mean confidence| over `bins` of equal width, weighted.

    Source: Guo et al., arXiv 1706.04599, equation 3. Answers without a confidence are left out.
    """
    sure = [answer for answer in said if answer.confidence is not None]
    confidence = np.array([answer.confidence for answer in sure], np.float64)
    right = np.array([_is_right(answer) for answer in sure], np.float64)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(right[place == b].sum() - confidence[place == b].sum()) for b in range(bins)]
    return float(sum(gaps) / len(sure))


def fitted_temperature(said: Sequence[Answer]) -> float:
    """The temperature, to 5 %, by which the truth is likeliest under the first word's logits.

    Source: Guo et al., arXiv 1706.04599, section 4.2. `said` should be of clips that were not trained on.
    """
    outcomes = list(FIRST_WORDS)
    logits = np.array([answer.logits for answer in said], np.float64)
    truth = np.array([outcomes.index(None if a.truth is None else a.truth.outcome) for a in said])

    def surprise(temperature: float) -> float:
        scaled = logits / temperature
        scaled -= scaled.max(axis=1, keepdims=True)
        return float((np.log(np.exp(scaled).sum(axis=1)) - scaled[np.arange(len(truth)), truth]).mean())

    return float(min(np.geomspace(0.25, 16, 86), key=surprise))


def _is_right(answer: Answer) -> bool:
    stated = parse(answer.text)
    return stated.hoop is False if answer.truth is None else stated.outcome == answer.truth.outcome


def scores(said: Sequence[Answer]) -> list[str]:
    """A line per attribute: accuracy, its interval, and the accuracy of always giving the commonest answer.

    Whether a hoop is in view is asked of all clips, the rest of those that show a shot.
    """
    lines = [_score("hoop in view", [(answer.truth is not None, parse(answer.text).hoop) for answer in said])]
    shots = [(answer.truth, parse(answer.text)) for answer in said if answer.truth is not None]
    for name, value in MEASURES.items():
        if shots:
            lines.append(_score(name, [(value(truth), value(stated)) for truth, stated in shots]))
    return lines


def _score(name: str, pairs: Sequence[tuple[object, object]]) -> str:
    """One line of `scores` from pairs of truth and what was said."""
    hits, total = sum(truth == stated for truth, stated in pairs), len(pairs)
    low, high = wilson(hits, total)
    common = Counter(truth for truth, _ in pairs).most_common(1)[0][1] / total
    return f"{name:14} {hits}/{total} = {hits / total:.2f} [{low:.2f}, {high:.2f}]  commonest {common:.2f}"


def confusion(said: Sequence[Answer]) -> list[str]:
    """Outcome confusion matrix: rows what happened, columns what was said."""
    rows: tuple[str, ...] = (*OUTCOMES, "no hoop")
    columns = (*rows, "neither")
    counts: Counter[tuple[str, str]] = Counter(
        ("no hoop" if answer.truth is None else answer.truth.outcome, _outcome_said(parse(answer.text)))
        for answer in said
    )
    lines = ["happened \\ said  " + "  ".join(f"{column:>7}" for column in columns)]
    for row in rows:
        if any(happened == row for happened, _ in counts):
            lines.append(f"{row:15}  " + "  ".join(f"{counts[row, column]:7d}" for column in columns))
    return lines


def _outcome_said(stated: PartialShot) -> str:
    return "no hoop" if stated.hoop is False else stated.outcome or "neither"


def unseen(rim: Path, cache: Path, vgg: Path, processes: int) -> dict[str, list[StoredClip]]:
    """The clips that are never trained on, with the keyframes that the runtime's sampler picks."""
    real = real_clips(rim, "val", cache, processes)
    rendered = rendered_clips(RENDERED_HELD_OUT, HELD_OUT_CLIPS, cache, processes)
    elsewhere = clips_elsewhere(RENDERED_HELD_OUT, HELD_OUT_CLIPS, cache, processes)
    return {
        "real validation": with_picks(real, vgg, cache, rim),
        "rendered, held out": with_picks(rendered, vgg, cache),
        "without a hoop, made, held out": with_picks(elsewhere, vgg, cache),
    }


def report(title: str, said: Sequence[Answer], each: bool = False) -> None:
    """Print scores and confusion of one set of clips, and every sentence when `each`."""
    print(f"\n{title}: {len(said)} clips")
    for line in (*scores(said), *confusion(said)):
        print("  " + line)
    if any(answer.confidence is not None for answer in said):
        print(f"  expected calibration error of the outcome, 10 bins: {calibration_error(said):.3f}")
    for answer in said if each else ():
        shot = answer.truth
        truth = "no hoop" if shot is None else f"{shot.outcome}/{shot.entry}/{'+'.join(shot.contacts)}/{shot.exit}"
        sure = "" if answer.confidence is None else f"  {answer.confidence:.3f}"
        print(f"  {answer.name}  {truth}  {answer.text}{sure}")


def agreement(floats: Sequence[Answer], exported: Sequence[Answer]) -> str:
    """How often two chains state the same outcome of the same clips."""
    return _score(
        "same outcome",
        [(_outcome_said(parse(a.text)), _outcome_said(parse(b.text))) for a, b in zip(floats, exported, strict=True)],
    )


def report_all(describer: Describer, sets: Mapping[str, Sequence[StoredClip]], each: bool = False) -> None:
    """Describe sets of clips in PyTorch, and `report` each."""
    for title, clips in sets.items():
        report(title, answers(describer, clips), each)


def report_bundle(args: argparse.Namespace) -> None:
    """Score an exported bundle on the real validation clips, and on what else was asked for."""
    rows = [row for row in read_labels(args.rim) if row["split"] == "val"]
    clips: dict[Path, Shot | None] = {args.rim / row["file"]: shot_of(row) for row in rows}
    validation = bundle_answers(args.bundle, clips)
    report("real validation, exported bundle", validation, args.each)
    if args.elsewhere is not None:
        others = dict.fromkeys(sorted(args.elsewhere.glob("*.mp4")))
        report("no hoop in view, exported bundle", bundle_answers(args.bundle, others), args.each)
    if args.agreement:
        trained = real_clips(args.rim, "train", args.cache, args.threads)
        real = [*trained, *real_clips(args.rim, "val", args.cache, args.threads)]
        exported = bundle_answers(args.bundle, {args.rim / clip.name: clip.shot for clip in trained})
        report("real clips that it was trained on, exported bundle", exported)
        picked = with_picks(real, args.weights / weights.VGG_NAME, args.cache, args.rim)
        floats = answers(weights.load_describer(args.weights, smollm_path()), picked)
        print(f"\nPyTorch against the bundle: {agreement(floats, [*exported, *validation])}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Score the pocket weights on validation and held-out rendered clips.")
    parser.add_argument("--rim", type=Path, required=True, help="folder with labels.tsv, train/ and val/")
    parser.add_argument("--weights", type=Path, default=weights.WEIGHTS)
    parser.add_argument("--bundle", type=Path, help="score this exported bundle instead, on the real clips")
    parser.add_argument("--elsewhere", type=Path, help="folder of .mp4 files without a hoop, for the bundle")
    parser.add_argument(
        "--agreement", action="store_true", help="score it on training clips, too, and compare it with PyTorch on all"
    )
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--each", action="store_true", help="print every sentence")
    args = parser.parse_args()
    if args.bundle is not None:
        report_bundle(args)
        return
    torch.set_num_threads(args.threads)
    describer = weights.load_describer(args.weights, smollm_path())
    report_all(describer, unseen(args.rim, args.cache, args.weights / weights.VGG_NAME, args.threads), args.each)


if __name__ == "__main__":
    main()
