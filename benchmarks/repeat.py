"""Benchmarks of one build, each held against the next: `python -m svrt.benchmarks.repeat --rounds 20`.

`svrt bench compare` gives a 95 % interval with each ratio. Nothing differs here, so about 19 of 20 intervals must hold
1; fewer would mean that they are too narrow on this machine, and that a difference it reports may be none.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median_high

from ..bundle import Bundle
from ..cache import open_bundle
from . import markdown as text
from .bench import JSON, RUNS, SAMPLE, check_writable, write
from .compare import Comparison, compare
from .harness import Job, make_ready, measure

ROUNDS = 20


def repeat(bundle: Bundle, clip: Path, folder: Path, rounds: int, runs: int, backend: str) -> Iterator[Comparison]:
    """Measure `rounds` + 1 times and compare each benchmark with the one before it, as soon as it is there.

    Raises what `harness.measure` raises.
    """
    job = Job(bundle, [clip], runs=runs, backend=backend)
    make_ready(bundle, backend)
    before: Path | None = None
    for index in range(rounds + 1):
        place = folder / str(index)
        check_writable(place)
        write(measure(job), place)
        if before is not None:
            yield compare(before, place / JSON)
        before = place / JSON


def rows(found: Sequence[Comparison]) -> text.Rows:
    """By stage: how many comparisons saw no difference, of how many; the widest ratio and the median interval."""
    made: text.Rows = []
    for name in [row.stage for row in found[0].rows]:
        all_of = [row for one in found for row in one.rows if row.stage == name and row.ratio is not None]
        if not all_of:
            continue
        alike = [row for row in all_of if not row.seen]
        widest = max((row.ratio or 1 for row in all_of), key=lambda ratio: abs(ratio - 1))
        half = median_high(((row.high or 1) - (row.low or 1)) / 2 for row in all_of)
        made.append([name, f"{len(alike)} of {len(all_of)}", f"{widest:.3f}", f"±{half:.1%}"])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m svrt.benchmarks.repeat", description=__doc__)
    parser.add_argument("--bundle", type=Path, help="bundle to use; the built-in one if not given")
    parser.add_argument("--clip", type=Path, default=SAMPLE)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="comparisons")
    parser.add_argument("--runs", type=int, default=RUNS, help="warm runs of each benchmark")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--out", type=Path, help="folder to keep the reports in")
    given = parser.parse_args()
    found: list[Comparison] = []
    with tempfile.TemporaryDirectory() as passing:
        bundle, folder = open_bundle(given.bundle), given.out or Path(passing)
        for one in repeat(bundle, given.clip, folder, given.rounds, given.runs, given.backend):
            found.append(one)
            seen = [row.stage for row in one.rows if row.seen]
            print(f"svrt: {len(found)} of {given.rounds}, differing: {', '.join(seen) or 'nothing'}", file=sys.stderr)
    print(text.table(("no difference seen", "comparisons", "widest ratio", "median interval"), rows(found)))


if __name__ == "__main__":
    main()
