"""Information Richness: how much a text says, whether or not it is true.

The paper (arXiv 2507.17844) names six terms and gives their sum, 160.697, about 94 % of it vocabulary; it gives
no formula. These are our choice: do not hold our sum against the paper's. Each is a count or a share of one text, so
that a set's figure is a mean over clips, and does not grow with their number.

| term | formula |
| --- | --- |
| information density | content words / words (lexical density; Ure, 1971), 0 to 1 |
| action complexity | different actions named, in any inflection |
| measurement precision | numbers with a unit: 16', 2.8 s, three feet |
| sequence length | steps told: pieces between sentence ends, semicolons, colons and words such as "then" |
| vocabulary richness | different words |
| technical coverage | share of the ten groups of the glossary that the text takes a word from, 0 to 1 |

The lists behind them are in `svrt.evaluation.words`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .words import GLOSSARY, actions, compounds, content_words, measurements, steps, words

TERMS = {
    "information_density": "information density",
    "action_complexity": "action complexity",
    "measurement_precision": "measurement precision",
    "sequence_length": "sequence length",
    "vocabulary_richness": "vocabulary richness",
    "technical_coverage": "technical coverage",
}


def richness(text: str) -> dict[str, float]:
    """The six terms of one text, by the names of `TERMS`; all 0 for a text without words."""
    said = words(text)
    terms = {*said, *compounds(text)}
    return {
        "information_density": len(content_words(text)) / max(len(said), 1),
        "action_complexity": float(len(actions(text))),
        "measurement_precision": float(len(measurements(text))),
        "sequence_length": float(len(steps(text))),
        "vocabulary_richness": float(len(set(said))),
        "technical_coverage": sum(bool(group & terms) for group in GLOSSARY.values()) / len(GLOSSARY),
    }


def score(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """The six terms of each text: float64 [n] by term."""
    each = [richness(text) for text in texts]
    return {name: np.array([one[name] for one in each], np.float64) for name in TERMS}
