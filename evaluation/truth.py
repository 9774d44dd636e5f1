"""Ground Truth Validation: five measures of how near a text is to its reference, and their sum.

The paper (arXiv 2507.17844) names the terms: ROUGE-L + BLEU + BERT F1 + content F1 + semantic similarity; it gives the
sum (2.124) and no settings. Those below are our choice, and stand in every report. Each term is of one clip, from 0 to
1 (semantic similarity from -1), and a figure is its mean over the clips, so that a sum of means is a mean of sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from . import bertscore, minilm
from .term import AbsentTermError
from .words import content_words

TERMS = {
    "rouge_l": "ROUGE-L",
    "bleu": "BLEU",
    "bert_f1": "BERT F1",
    "content_f1": "content F1",
    "semantic_similarity": "semantic similarity",
}


@dataclass(frozen=True)
class Truth:
    """Scores of n clips. `values` holds float64 [n] by term, `missing` why a term is not there.

    `corpus_bleu` is of all clips at once, 0 to 1; `settings` says how each term was computed.
    """

    values: dict[str, np.ndarray]
    missing: dict[str, str]
    corpus_bleu: float
    settings: dict[str, str]

    @property
    def sums(self) -> np.ndarray:
        """Each clip's sum of the terms that are there: float64 [n]."""
        return np.asarray(np.sum(list(self.values.values()), axis=0))


def score(texts: Sequence[str], references: Sequence[str]) -> Truth:
    """The five terms of each text against its reference; one whose model is not here is missing, with the reason."""
    bleu = BLEU(effective_order=True)
    terms: dict[str, Callable[[Sequence[str], Sequence[str]], np.ndarray]] = {
        "rouge_l": rouge_l,
        "bleu": lambda texts, references: sentence_bleu(bleu, texts, references),
        "bert_f1": bertscore.bert_f1,
        "content_f1": lambda texts, references: np.array([*map(content_f1, texts, references)], np.float64),
        "semantic_similarity": semantic_similarity,
    }
    values, missing = {}, {}
    for name, measure in terms.items():
        try:
            values[name] = measure(texts, references)
        except AbsentTermError as exc:
            missing[name] = str(exc)
    corpus = BLEU().corpus_score(list(texts), [list(references)])
    return Truth(values, missing, min(1.0, corpus.score / 100), _settings(bleu))


def _settings(bleu: BLEU) -> dict[str, str]:
    return {
        "rouge_l": "F1 of the longest common subsequence, rouge-score, Porter stemmer",
        "bleu": f"sentence BLEU, sacrebleu {bleu.get_signature()}",
        "bert_f1": f"bert-score, {bertscore.MODEL}, layer {bertscore.LAYER}, no idf, not rescaled",
        "content_f1": "F1 of the multisets of words that are no stop words, lower case",
        "semantic_similarity": f"cosine of {minilm.NAME}",
    }


def rouge_l(texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """ROUGE-L F1 (Lin, 2004) by rouge-score, words reduced to stems (ROUGE-1.5.5's `-m`): float64 [n].

    Stems, because a label says "Shot" where a sentence says "shots" or "shooting".
    """
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(references, texts, strict=True)
    return np.array([scorer.score(reference, text)["rougeL"].fmeasure for reference, text in pairs], np.float64)


def sentence_bleu(bleu: BLEU, texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """BLEU (Papineni et al., 2002) of each text by sacrebleu (Post, 2018), as a share of 1: float64 [n].

    Of sentences, because the sum is of clips, and clips are what the intervals draw; corpus BLEU is reported beside it.
    `effective_order`: a reference of fewer than four words, as labels often are, can still be met in full.
    """
    scores = [bleu.sentence_score(text, [reference]).score for text, reference in zip(texts, references, strict=True)]
    return np.minimum(np.array(scores, np.float64) / 100, 1.0)  # sacrebleu gives 100.00000000000004 for the same text


def content_f1(text: str, reference: str) -> float:
    """F1 of the content words of both, each counted as often as it occurs; their order does not matter.

    2 m / (a + b): m words in common, a and b in each: SQuAD's F1 (Rajpurkar et al., 2016) with other stop words. Our
    choice; the paper does not say.
    """
    ours, theirs = Counter(content_words(text)), Counter(content_words(reference))
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * sum((ours & theirs).values()) / (sum(ours.values()) + sum(theirs.values()))


def semantic_similarity(texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Cosine of the two sentences' embeddings: float64 [n]. Raises `AbsentTermError` where the model is not here."""
    model = minilm.load()
    vectors = {text: model.embed(text) for text in {*texts, *references}}
    cosines = [float(vectors[text] @ vectors[other]) for text, other in zip(texts, references, strict=True)]
    return np.minimum(np.array(cosines, np.float64), 1.0)
