"""Many clips one after the other, and with the next read ahead: `python -m svrt.benchmarks.overlap --clip A --clip B`.

The two ways alternate within one process, after each has run once; texts are checked to be the same.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..cache import engine_folder, open_bundle
from ..errors import SvrtError
from ..runtime.pipeline import Description, Pipeline
from .bench import SAMPLE

ROUNDS = 5
CLIPS = 6


@dataclass(frozen=True)
class Overlap:
    """Clips described a second, medians over rounds; `ratio` is the median of the rounds' ratios."""

    one_by_one: float
    read_ahead: float
    ratio: float


def measure(pipeline: Pipeline, clips: Sequence[Path], rounds: int = ROUNDS) -> Overlap:
    """Describe the clips both ways, `rounds` times. Raises `SvrtError` where a clip cannot be described."""

    def one_by_one() -> list[str]:
        return [pipeline.describe(clip).text for clip in clips]

    def read_ahead() -> list[str]:
        return [_text(found) for found in pipeline.describe_all(clips)]

    if one_by_one() != read_ahead():
        raise SvrtError("the two ways do not give the same texts")
    pairs = [(_per_second(one_by_one, clips), _per_second(read_ahead, clips)) for _ in range(rounds)]
    plain, ahead = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Overlap(plain, ahead, statistics.median(b / a for a, b in pairs))


def _text(found: Description | SvrtError) -> str:
    if isinstance(found, SvrtError):
        raise found
    return found.text


def _per_second(work: Callable[[], object], clips: Sequence[Path]) -> float:
    started = time.perf_counter()
    work()
    return len(clips) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m svrt.benchmarks.overlap", description=__doc__)
    parser.add_argument("--bundle", type=Path, help="bundle to use; the built-in one if not given")
    parser.add_argument("--clip", type=Path, action="append", help="clip, once or more; the sample if not given")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    bundle = open_bundle(given.bundle)
    clips = given.clip or [SAMPLE] * CLIPS
    with Pipeline(bundle, given.backend, engine_cache=engine_folder()) as pipeline:
        found = measure(pipeline, clips, given.rounds)
    print(f"{bundle.manifest.name}, {len(clips)} clips, {given.rounds} rounds\n")
    print("| one by one, clips/s | next read ahead, clips/s | ratio |\n| --- | --- | --- |")
    print(f"| {found.one_by_one:.3f} | {found.read_ahead:.3f} | {found.ratio:.3f} |")


if __name__ == "__main__":
    main()
