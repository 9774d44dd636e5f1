"""How often the pocket model's sentences are true, on clips it has never seen.

    python -m svrt.models.pocket.evaluate --rim FOLDER [--weights FOLDER]
    python -m svrt.models.pocket.evaluate --rim FOLDER --bundle FOLDER

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
    truth: Shot
    text: str
    confidence: float | None = None


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
    said = []
    for clip in clips:
        frames = torch.from_numpy(plain_sample(clip).frames[None])
        said.append(Answer(clip.name, clip.shot, describer.describe(pool(describer.encoder(frames)))[0]))
    return said


def bundle_answers(bundle: Path, rim: Path) -> list[Answer]:
    """Describe the validation clips as a user would: video files, the runtime, an exported and quantized bundle."""
    rows = [row for row in read_labels(rim) if row["split"] == "val"]
    with Pipeline(Bundle.load(bundle)) as pipeline:
        found = [(row, pipeline.describe(rim / row["file"])) for row in rows]
    return [Answer(row["file"], shot_of(row), said.text, said.confidence) for row, said in found]


def calibration_error(said: Sequence[Answer], bins: int = 10) -> float:
    """Expected calibration error of the outcome: |share right - mean confidence| over `bins` of equal width, weighted.

    Source: Guo et al., arXiv 1706.04599, equation 3. Answers without a confidence are left out.
    """
    sure = [answer for answer in said if answer.confidence is not None]
    confidence = np.array([answer.confidence for answer in sure], np.float64)
    right = np.array([parse(answer.text).outcome == answer.truth.outcome for answer in sure], np.float64)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(right[place == b].sum() - confidence[place == b].sum()) for b in range(bins)]
    return float(sum(gaps) / len(sure))


def scores(said: Sequence[Answer]) -> list[str]:
    """A line per attribute: accuracy, its interval, and the accuracy of always giving the commonest answer."""
    lines = []
    for name, value in MEASURES.items():
        truths = [value(answer.truth) for answer in said]
        hits = sum(value(parse(a.text)) == truth for a, truth in zip(said, truths, strict=True))
        low, high = wilson(hits, len(said))
        common = Counter(truths).most_common(1)[0][1] / len(said)
        lines.append(
            f"{name:14} {hits}/{len(said)} = {hits / len(said):.2f} [{low:.2f}, {high:.2f}]  commonest {common:.2f}"
        )
    return lines


def confusion(said: Sequence[Answer]) -> list[str]:
    """Outcome confusion matrix: rows what happened, columns what was said."""
    columns = [*OUTCOMES, None]
    counts = Counter((answer.truth.outcome, parse(answer.text).outcome) for answer in said)
    lines = ["happened \\ said  " + "  ".join(f"{column or 'neither':>7}" for column in columns)]
    for row in OUTCOMES:
        lines.append(f"{row:15}  " + "  ".join(f"{counts[row, column]:7d}" for column in columns))
    return lines


def unseen(rim: Path, cache: Path, vgg: Path, processes: int) -> dict[str, list[StoredClip]]:
    """The clips that are never trained on, with the keyframes that the runtime's sampler picks."""
    real = real_clips(rim, "val", cache, processes)
    rendered = rendered_clips(RENDERED_HELD_OUT, HELD_OUT_CLIPS, cache, processes)
    return {
        "real validation": with_picks(real, vgg, cache, rim),
        "rendered, held out": with_picks(rendered, vgg, cache),
    }


def report(title: str, said: Sequence[Answer], each: bool = False) -> None:
    """Print scores and confusion of one set of clips, and every sentence when `each`."""
    print(f"\n{title}: {len(said)} clips")
    for line in (*scores(said), *confusion(said)):
        print("  " + line)
    if any(answer.confidence is not None for answer in said):
        print(f"  expected calibration error of the outcome, 10 bins: {calibration_error(said):.3f}")
    for answer in said if each else ():
        print(f"  {answer.name}  {answer.truth.outcome}/{answer.truth.entry}/{answer.truth.exit}  {answer.text}")


def report_all(describer: Describer, sets: Mapping[str, Sequence[StoredClip]], each: bool = False) -> None:
    """Describe sets of clips in PyTorch, and `report` each."""
    for title, clips in sets.items():
        report(title, answers(describer, clips), each)


def main() -> None:
    parser = argparse.ArgumentParser(description="Score the pocket weights on validation and held-out rendered clips.")
    parser.add_argument("--rim", type=Path, required=True, help="folder with labels.tsv, train/ and val/")
    parser.add_argument("--weights", type=Path, default=weights.WEIGHTS)
    parser.add_argument("--bundle", type=Path, help="score this exported bundle instead, on the real clips")
    parser.add_argument("--cache", type=Path, default=default_cache())
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--each", action="store_true", help="print every sentence")
    args = parser.parse_args()
    if args.bundle is not None:
        report("real validation, exported bundle", bundle_answers(args.bundle, args.rim), args.each)
        return
    torch.set_num_threads(args.threads)
    describer = weights.load_describer(args.weights, smollm_path())
    report_all(describer, unseen(args.rim, args.cache, args.weights / weights.VGG_NAME, args.threads), args.each)


if __name__ == "__main__":
    main()
