"""What each variant reached on each group of clips, and how far that is from what the paper's sampler reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..bootstrap import Estimate, interval
from .journal import Result
from .recall import EDGES, RECALLED, Share, coverage, recall, recall_gain
from .variants import PAPER_SAMPLER

Terms = Mapping[str, np.ndarray]  # of Ground Truth Validation, the scores of n results: float64 [n] each


@dataclass(frozen=True)
class Recalled:
    """Of keyframes, where events are known.

    `events` is the recall of contacts and of passing the net within `TOLERANCE` frames, `same_frame` of the same within
    0, `by_kind` of each kind, those of the picture's edge too. `gain` is `events` less that of the paper's sampler.
    """

    events: Share
    same_frame: Share
    by_kind: dict[str, Share]
    gain: Estimate


@dataclass(frozen=True)
class Validated:
    """Ground Truth Validation. `total` is the sum of all five terms, None where one is missing; `of_present` is that of
    the terms that are there, `gain` is it less that of the paper's sampler.
    """

    terms: dict[str, Estimate]
    total: Estimate | None
    of_present: Estimate
    gain: Estimate


@dataclass(frozen=True)
class Stated:
    """Of sentences. `gain` is the share of right outcomes less that of the paper's sampler; `gained` counts the clips
    that are right here and not there, `lost` the other way round. `truth` is None where no term can be computed.
    """

    outcome: Share
    gained: int
    lost: int
    gain: Estimate
    truth: Validated | None


@dataclass(frozen=True)
class Measured:
    """One variant on one group of clips. `coverage` is the share of all frames within `TOLERANCE` of a keyframe."""

    clips: int
    keyframes: int
    coverage: float
    recall: Recalled | None
    sentences: Stated | None


@dataclass(frozen=True)
class Table:
    """Measures by group of clips, then by variant. `missing` says why a term of Ground Truth Validation is not there,
    `settings` how the others are computed, `backends` what ran the bundle's parts.
    """

    groups: dict[str, dict[str, Measured]]
    missing: dict[str, str]
    settings: dict[str, str]
    backends: dict[str, str]


def tabulate(results: Sequence[Result], backends: dict[str, str]) -> Table:
    """Score every variant on every group."""
    described = [result for result in results if result.text is not None]
    terms, missing, settings = ground_truth(described)
    scores = {id(result): {name: values[at] for name, values in terms.items()} for at, result in enumerate(described)}
    groups = {}
    for group in dict.fromkeys(result.group for result in results):
        rows: dict[str, list[Result]] = {}
        for result in results:
            if result.group == group:
                rows.setdefault(result.variant, []).append(result)
        groups[group] = {
            name: measure(row, rows[PAPER_SAMPLER], *(_of(scores, each) for each in (row, rows[PAPER_SAMPLER])))
            for name, row in rows.items()
        }
    return Table(groups, missing, settings, backends)


def ground_truth(results: Sequence[Result]) -> tuple[Terms, dict[str, str], dict[str, str]]:
    """Scores by term that can be computed here, the reasons for those that cannot, and settings of those that can."""
    if not results:
        return {}, {}, {}
    try:
        from .. import truth
    except ModuleNotFoundError as exc:
        return {}, {"all terms": f"the package {exc.name} is not installed; run: pip install 'svrt[eval]'"}, {}
    pairs = [(result.text or "", result.reference) for result in results]
    once = {pair: place for place, pair in enumerate(dict.fromkeys(pairs))}  # variants often say the same
    texts, references = zip(*once, strict=True)
    found, places = truth.score(texts, references), [once[pair] for pair in pairs]
    terms = {term: values[places] for term, values in found.values.items()}
    return terms, found.missing, {term: found.settings[term] for term in terms}


def _of(scores: Mapping[int, Mapping[str, float]], results: Sequence[Result]) -> Terms:
    found = [scores.get(id(result), {}) for result in results]
    return {term: np.array([each[term] for each in found], np.float64) for term in found[0]}


def measure(results: Sequence[Result], paper: Sequence[Result], terms: Terms, paper_terms: Terms) -> Measured:
    """Score one variant on one group; `paper` is the paper's sampler on the same clips in the same order."""
    assert [result.clip for result in results] == [result.clip for result in paper]
    return Measured(
        clips=len(results),
        keyframes=len(results[0].keyframes),
        coverage=sum(coverage(result.keyframes, result.frames) for result in results) / len(results),
        recall=_recalled(results, paper),
        sentences=None if results[0].text is None else _stated(results, paper, _validated(terms, paper_terms)),
    )


def _recalled(results: Sequence[Result], paper: Sequence[Result]) -> Recalled | None:
    events, same_frame, gain = recall(results), recall(results, tolerance=0), recall_gain(results, paper)
    if events is None or same_frame is None or gain is None:
        return None
    by_kind = {kind: recall(results, [kind]) for kind in (*RECALLED, *EDGES)}
    return Recalled(events, same_frame, {kind: share for kind, share in by_kind.items() if share is not None}, gain)


def _stated(results: Sequence[Result], paper: Sequence[Result], truth: Validated | None) -> Stated:
    right, right_there = (np.array([result.is_right for result in each], np.int64) for each in (results, paper))
    return Stated(
        outcome=Share.of_clips(int(right.sum()), len(right)),
        gained=int((right > right_there).sum()),
        lost=int((right < right_there).sum()),
        gain=_estimate(right - right_there),
        truth=truth,
    )


def _validated(terms: Terms, paper_terms: Terms) -> Validated | None:
    if not terms:
        return None
    from ..truth import TERMS

    ours, theirs = (np.sum(list(each.values()), axis=0) for each in (terms, paper_terms))
    of_present = _estimate(ours)
    return Validated(
        terms={name: _estimate(values) for name, values in terms.items()},
        total=of_present if len(terms) == len(TERMS) else None,
        of_present=of_present,
        gain=_estimate(ours - theirs),
    )


def _estimate(values: np.ndarray) -> Estimate:
    found = interval(values)
    assert found is not None  # a group has a clip
    return found
