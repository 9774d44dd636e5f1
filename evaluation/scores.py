"""All scores of what was said: Ground Truth Validation, Information Richness, labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import labels, richness, truth
from .bootstrap import Estimate, interval
from .run import Said


@dataclass(frozen=True)
class TruthScores:
    """Estimates by term of `svrt.evaluation.truth`.

    `sum_of_present` is of the terms in `terms`, whichever they are; `ground_truth_validation` is that of all five, and
    None where one is missing, for the reason in `missing`.
    """

    terms: dict[str, Estimate]
    missing: dict[str, str]
    sum_of_present: Estimate
    ground_truth_validation: Estimate | None
    corpus_bleu: float
    settings: dict[str, str]


@dataclass(frozen=True)
class RichnessScores:
    """Estimates by term of `svrt.evaluation.richness`, and of their sum."""

    terms: dict[str, Estimate]
    information_richness: Estimate


@dataclass(frozen=True)
class ClipScores:
    """One line of the per-clip table. A figure that there is none of is not in its dict."""

    video: str
    text: str | None
    reference: str | None
    error: str | None
    truth: dict[str, float]
    richness: dict[str, float]
    labels: dict[str, str]
    stated: dict[str, str]


@dataclass(frozen=True)
class Scores:
    """Of the clips that were described. `truth` is None without references, `labels` empty without labels."""

    truth: TruthScores | None
    richness: RichnessScores | None
    labels: dict[str, labels.Accuracy]
    clips: list[ClipScores]


def score(said: Sequence[Said]) -> Scores:
    """Score every clip that has a text; where none has, there are only the clips' errors."""
    spoken = [(index, one, one.text) for index, one in enumerate(said) if one.text is not None]
    texts = [text for _, _, text in spoken]
    rich = richness.score(texts)
    held = [(one.reference, text) for _, one, text in spoken if one.reference is not None]
    found = truth.score([text for _, text in held], [reference for reference, _ in held]) if held else None
    assert found is None or len(held) == len(spoken)  # a table has references in every row, or in none
    position = {index: at for at, (index, _, _) in enumerate(spoken)}
    clips = [_clip(one, position.get(index), found, rich) for index, one in enumerate(said)]
    return Scores(
        None if found is None else _truth(found),
        _richness(rich) if texts else None,
        labels.accuracies(texts, [one.labels for _, one, _ in spoken]),
        clips,
    )


def _clip(said: Said, at: int | None, found: truth.Truth | None, rich: dict[str, np.ndarray]) -> ClipScores:
    """`at` is the clip's place among those described; None where it is not one of them."""
    truths = {} if at is None or found is None else {name: float(values[at]) for name, values in found.values.items()}
    riches = {} if at is None else {name: float(values[at]) for name, values in rich.items()}
    stated = {} if said.text is None or not said.labels else labels.stated(said.text)
    return ClipScores(said.video, said.text, said.reference, said.error, truths, riches, said.labels, stated)


def _truth(found: truth.Truth) -> TruthScores:
    total = _estimate(found.sums)
    return TruthScores(
        {name: _estimate(values) for name, values in found.values.items()},
        found.missing,
        total,
        None if found.missing else total,
        found.corpus_bleu,
        found.settings,
    )


def _richness(rich: dict[str, np.ndarray]) -> RichnessScores:
    total = np.sum(list(rich.values()), axis=0)
    return RichnessScores({name: _estimate(values) for name, values in rich.items()}, _estimate(total))


def _estimate(values: np.ndarray) -> Estimate:
    found = interval(values)
    assert found is not None  # only sets with a clip come here
    return found
