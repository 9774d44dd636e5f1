"""What a person and a program see of an evaluation: progress, a table, Markdown that pastes, JSON, a table of clips."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..errors import OutputError
from ..runtime.engines.files import write_whole
from . import labels, richness, truth
from .bootstrap import LEVEL, RESAMPLES, SEED, Estimate
from .run import Said
from .scores import ClipScores, Scores
from .table import ATTRIBUTES

JSON, MARKDOWN, CLIPS = WRITTEN = "report.json", "report.md", "clips.tsv"
_SCORE = ("score", "mean", "95 % interval", "n")


class EvaluationDisplay:
    """Progress on stderr: a live bar on a terminal, a line for each tenth where there is none; errors as they come."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("describe clips"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> EvaluationDisplay:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def report(self, said: Said | None, done: int, total: int) -> None:
        """Take note of one more clip, or of what an earlier run did; see `svrt.evaluation.run.describe_all`."""
        self._progress.update(self._task, completed=done, total=total)
        if said is not None:
            self._tell(said, done, total)
        elif done:
            self._say(f"{done} of {total} clips are described already")
        if done == total:
            self._say("scoring")  # a minute or more of a thousand clips on a small computer

    def _tell(self, said: Said, done: int, total: int) -> None:
        for warning in said.warnings:
            self._say(f"warning: {said.video}: {warning}")
        if said.error is not None:
            self._say(f"error: {said.error}" if said.video in said.error else f"error: {said.video}: {said.error}")
        elif not self._console.is_terminal and done * 10 // total > (done - 1) * 10 // total:
            print(f"svrt: {done} of {total} clips", file=sys.stderr, flush=True)

    def _say(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(Text(f"svrt: {text}"), soft_wrap=True)


@dataclass(frozen=True)
class Evaluation:
    """Scores, and what they are of. `versions` are of svrt and the libraries that scored."""

    table: str
    bundle_name: str
    bundle_sha256: str
    backends: dict[str, str]
    versions: dict[str, str]
    scores: Scores

    @property
    def failed(self) -> list[ClipScores]:
        """The clips that could not be described."""
        return [clip for clip in self.scores.clips if clip.text is None]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dumps`, every figure unrounded; single clips are in the table of clips."""
        scores = asdict(self.scores)
        del scores["clips"]
        return {
            "table": self.table,
            "bundle": {"name": self.bundle_name, "sha256": self.bundle_sha256},
            "backends": self.backends,
            "versions": self.versions,
            "clips": len(self.scores.clips),
            "described": len(self.scores.clips) - len(self.failed),
            "failed": [{"video": clip.video, "error": clip.error} for clip in self.failed],
            "bootstrap": {"resamples": RESAMPLES, "seed": SEED, "level": LEVEL, "interval": "percentile"},
            **scores,
        }


@dataclass(frozen=True)
class Sheet:
    """A table to print: `headings` over `rows`; all columns but the first are figures."""

    headings: Sequence[str]
    rows: list[Sequence[str]]


def heading(found: Evaluation) -> list[str]:
    """What was evaluated, with what, in lines."""
    described = len(found.scores.clips) - len(found.failed)
    ran = ", ".join(f"{part} {name}" for part, name in found.backends.items())
    return [
        f"{found.table}: {described} of {len(found.scores.clips)} clips described by {found.bundle_name} "
        f"{found.bundle_sha256[:12]}" + (f"; {ran}" if ran else ""),
        ", ".join(f"{name} {version}" for name, version in found.versions.items()),
        f"intervals: percentile bootstrap over clips, {RESAMPLES} resamples, seed {SEED}; Wilson's for accuracies",
    ]


def sheets(found: Evaluation) -> list[Sheet]:
    """The tables of a report, in order."""
    scores = found.scores
    parts = [_truth_sheet(found), _richness_sheet(found), _accuracy_sheet(scores)]
    parts += [_confusion_sheet(name, accuracy) for name, accuracy in scores.labels.items()]
    return [sheet for sheet in parts if sheet.rows]


def notes(found: Evaluation) -> list[str]:
    """What the figures rest on: settings, terms that are missing, clips that failed."""
    lines = []
    if found.scores.truth is not None:
        lines += [f"{truth.TERMS[name]}: not computed: {reason}" for name, reason in found.scores.truth.missing.items()]
        present = found.scores.truth.terms
        lines += [f"{truth.TERMS[name]}: {found.scores.truth.settings[name]}" for name in present]
    return lines + [f"not described: {clip.video}: {clip.error}" for clip in found.failed]


def _figures(name: str, found: Estimate | None) -> Sequence[str]:
    if found is None:
        return (name, "null", "", "")
    return (name, f"{found.mean:.3f}", f"{found.low:.3f} to {found.high:.3f}", str(found.n))


def _truth_sheet(found: Evaluation) -> Sheet:
    scores = found.scores.truth
    if scores is None:
        return Sheet(_SCORE, [])
    rows = [_figures(title, scores.terms.get(name)) for name, title in truth.TERMS.items()]
    rows.append(_figures("Ground Truth Validation (sum of five)", scores.ground_truth_validation))
    if scores.missing:
        names = " + ".join(truth.TERMS[name] for name in scores.terms)
        rows.append(_figures(f"sum of {len(scores.terms)}: {names}", scores.sum_of_present))
    rows.append(("corpus BLEU (not in the sum)", f"{scores.corpus_bleu:.3f}", "", str(scores.sum_of_present.n)))
    return Sheet(_SCORE, rows)


def _richness_sheet(found: Evaluation) -> Sheet:
    scores = found.scores.richness
    if scores is None:
        return Sheet(_SCORE, [])
    rows = [_figures(title, scores.terms[name]) for name, title in richness.TERMS.items()]
    rows.append(_figures("Information Richness (sum of six, our formulas)", scores.information_richness))
    return Sheet(_SCORE, rows)


def _accuracy_sheet(scores: Scores) -> Sheet:
    rows: list[Sequence[str]] = []
    for name, found in scores.labels.items():
        share = f"{found.hits / found.n:.3f}"
        span = f"{found.low:.3f} to {found.high:.3f}"
        rows.append((labels.TITLES[name], f"{found.hits}/{found.n}", share, span, f"{found.commonest:.3f}"))
    return Sheet(("attribute", "right", "accuracy", "95 % interval", "commonest answer"), rows)


def _confusion_sheet(name: str, found: labels.Accuracy) -> Sheet:
    """Rows are what is true, columns what was said; a value that is neither true nor said anywhere is left out."""
    said = [
        value for value in (*ATTRIBUTES[name], labels.NOT_SAID) if any(row[value] for row in found.confusion.values())
    ]
    rows: list[Sequence[str]] = [
        (truth_, *(str(row[value]) for value in said)) for truth_, row in found.confusion.items() if any(row.values())
    ]
    return Sheet((f"{labels.TITLES[name]}: true \\ said", *said), rows)


def show(found: Evaluation, out: Path) -> None:
    """Print it for a person, on stdout."""
    console = Console(highlight=False)
    for line in heading(found):
        console.print(Text(line), soft_wrap=True)
    for sheet in sheets(found):
        table = Table(box=None, pad_edge=False)
        for index, title in enumerate(sheet.headings):
            table.add_column(Text(title), justify="right" if index else "left", overflow="fold")
        for row in sheet.rows:
            table.add_row(*map(Text, row))
        console.print()
        console.print(table)
    console.print()
    for line in notes(found):
        console.print(Text(line), soft_wrap=True)
    console.print(Text(f"written: {out}/ {JSON}, {MARKDOWN}, {CLIPS}"), soft_wrap=True)


def markdown(found: Evaluation) -> str:
    """The same as Markdown."""
    blocks = ["  \n".join(map(_escaped, heading(found)))]
    for sheet in sheets(found):
        lines = [_pipes(sheet.headings), _pipes(["---", *["---:"] * (len(sheet.headings) - 1)])]
        lines += [_pipes(list(map(_escaped, row))) for row in sheet.rows]
        blocks.append("\n".join(lines))
    blocks.append("\n".join(f"- {_escaped(line)}" for line in notes(found)))
    return "\n\n".join(block for block in blocks if block) + "\n"


def _pipes(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def clip_table(found: Evaluation) -> str:
    """A line per clip, tab-separated with a header: text, reference, every term, sums, labels and what was stated."""
    clips = found.scores.clips
    terms = [name for name in truth.TERMS if any(name in clip.truth for clip in clips)]
    attributes = [name for name in ATTRIBUTES if any(name in clip.labels for clip in clips)]
    text = io.StringIO()
    lines = csv.writer(text, "excel-tab", lineterminator="\n")
    sums = ["sum_of_present"] if terms else []
    said = [column for name in attributes for column in (name, f"said_{name}")]
    header = ["video", "text", "reference", *terms, *sums, *richness.TERMS, "information_richness", *said, "error"]
    lines.writerow(header)
    for clip in clips:
        described = clip.text is not None
        truths = [_number(clip.truth.get(name)) for name in terms]
        truths += [_number(sum(clip.truth.values()) if described else None)] if terms else []
        riches = [_number(clip.richness.get(name)) for name in richness.TERMS]
        riches.append(_number(sum(clip.richness.values()) if described else None))
        pairs = [value for name in attributes for value in (clip.labels.get(name, ""), clip.stated.get(name, ""))]
        lines.writerow([clip.video, clip.text or "", clip.reference or "", *truths, *riches, *pairs, clip.error or ""])
    return text.getvalue()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def write(found: Evaluation, folder: Path) -> None:
    """Write the report as JSON, as Markdown, and the table of clips; each is whole or as it was before.

    Raises `OutputError` where the folder cannot be written.
    """
    texts = {JSON: json.dumps(found.to_json(), indent=2, ensure_ascii=False) + "\n"}
    texts |= {MARKDOWN: markdown(found), CLIPS: clip_table(found)}
    for name, text in texts.items():
        try:
            write_whole(folder / name, text.encode("utf-8", "backslashreplace"))
        except OSError as exc:
            raise OutputError(f"{folder / name}: cannot write there: {exc.strerror}") from exc
