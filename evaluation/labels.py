"""Labelled clips: how often a sentence states what is true, attribute by attribute.

Sentences are read back by the parser of the pocket model's own wording (`svrt.models.pocket.captions`): what it does
not recognise counts as not said, and so as wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..models.pocket.captions import parse
from .bootstrap import wilson
from .table import ATTRIBUTES, NO_HOOP

NOT_SAID = "not said"
TITLES = {"outcome": "outcome", "entry": "entry", "board": "board touched", "exit": "exit"}


@dataclass(frozen=True)
class Accuracy:
    """One attribute over the `n` clips labelled with it.

    `low` and `high` are Wilson's 95 % interval of `hits` / `n`; `commonest` is the share a constant answer would get.
    `confusion[true][said]` counts clips; `said` may be `NOT_SAID`.
    """

    hits: int
    n: int
    low: float
    high: float
    commonest: float
    confusion: dict[str, dict[str, int]]


def stated(text: str) -> dict[str, str]:
    """What a sentence states, by attribute; one that it does not state, or contradicts itself about, is not there."""
    found = parse(text)
    board = None if found.contacts is None else "yes" if "backboard" in found.contacts else "no"
    outcome = NO_HOOP if found.hoop is False else found.outcome
    values = {"outcome": outcome, "entry": found.entry, "board": board, "exit": found.exit}
    return {name: value for name, value in values.items() if value is not None}


def accuracies(texts: Sequence[str], labels: Sequence[dict[str, str]]) -> dict[str, Accuracy]:
    """Accuracy of each attribute that any clip is labelled with."""
    said = [stated(text) if truth else {} for text, truth in zip(texts, labels, strict=True)]
    found = {}
    for name in ATTRIBUTES:
        pairs = [
            (truth[name], one.get(name, NOT_SAID)) for truth, one in zip(labels, said, strict=True) if name in truth
        ]
        if pairs:
            found[name] = _accuracy(name, pairs)
    return found


def _accuracy(name: str, pairs: list[tuple[str, str]]) -> Accuracy:
    """Of pairs (true, said). Rows and columns are the attribute's values in their own order, seen or not."""
    hits = sum(truth == said for truth, said in pairs)
    counts, truths = Counter(pairs), Counter(truth for truth, _ in pairs)
    columns = (*ATTRIBUTES[name], NOT_SAID)
    confusion = {truth: {said: counts[truth, said] for said in columns} for truth in ATTRIBUTES[name]}
    return Accuracy(hits, len(pairs), *wilson(hits, len(pairs)), max(truths.values()) / len(pairs), confusion)
