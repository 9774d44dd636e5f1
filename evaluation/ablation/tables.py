"""The results in words: a table that says where the paper's sampler loses, then all figures by group of clips."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict

from ...bundle import Bundle
from ..bootstrap import Estimate
from .results import Measured, Table
from .variants import PAPER_SAMPLER

GAINS: dict[str, Callable[[Measured], Estimate | None]] = {
    "event recall": lambda row: row.recall.gain if row.recall else None,
    "outcome": lambda row: row.sentences.gain if row.sentences else None,
    "Ground Truth Validation": lambda row: row.sentences.truth.gain if row.sentences and row.sentences.truth else None,
}


def to_json(bundle: Bundle, table: Table) -> str:
    """Everything, unrounded."""
    names = {"name": bundle.manifest.name, "sha256": bundle.sha256}
    return json.dumps({"bundle": names, **asdict(table)}, indent=1) + "\n"


def to_markdown(bundle: Bundle, table: Table) -> str:
    """The same for a person."""
    lines = [
        "# Ablations of the sampler: what came out",
        "",
        f"Bundle `{bundle.manifest.name}`, manifest sha256 `{bundle.sha256[:12]}`. Brackets are 95 % intervals.",
        f"Run by {', '.join(f'{part}: {backend}' for part, backend in table.backends.items())}.",
        "[What is measured, and how](../ablations.md).",
        *_losses(table),
    ]
    for group, rows in table.groups.items():
        lines += ["", f"## {group}: {rows[PAPER_SAMPLER].clips} clips", ""]
        blocks = [block for block in (_keyframe_table(rows), _kind_table(rows), _sentence_table(rows)) if block]
        lines += [line for number, block in enumerate(blocks) for line in ([""] if number else []) + block]
    return "\n".join(lines + _terms(table)) + "\n"


def compare(rows: dict[str, Measured], gain: Callable[[Measured], Estimate | None]) -> dict[str, list[str]] | None:
    """Variants with as many keyframes as the paper's sampler: those it "loses to", and those it "beats".

    It loses where the whole interval of the difference is above zero, and beats where it is below. None where the
    measure is not there.
    """
    found: dict[str, list[str]] = {"loses to": [], "beats": []}
    for name, row in rows.items():
        if name == PAPER_SAMPLER or row.keyframes != rows[PAPER_SAMPLER].keyframes:
            continue
        difference = gain(row)
        if difference is None:
            return None
        if difference.low > 0:
            found["loses to"].append(name)
        if difference.high < 0:
            found["beats"].append(name)
    return found


def _losses(table: Table) -> list[str]:
    rows = []
    for group, measured in table.groups.items():
        for measure, gain in GAINS.items():
            found = compare(measured, gain)
            if found is not None:
                rows.append([group, measure, *(", ".join(names) or "none" for names in found.values())])
    keyframes = next(iter(table.groups.values()))[PAPER_SAMPLER].keyframes
    title = f"## Where {PAPER_SAMPLER} loses, with {keyframes} keyframes"
    lines = _table(["clips", "measure", "loses to", "beats"], rows)
    note = "From those that are not named it cannot be told apart: the interval of the difference holds zero."
    return ["", title, "", *lines, "", note]


def _keyframe_table(rows: dict[str, Measured]) -> list[str]:
    head = ["keyframes", "event recall", "frames covered", "same frame", f"recall less that of {PAPER_SAMPLER}"]
    known = any(row.recall for row in rows.values())
    lines = []
    for name, row in rows.items():
        found = row.recall
        cells = [str(found.events), str(found.same_frame), _signed(found.gain)] if found else ["-"] * 3
        lines.append([name, cells[0], f"{row.coverage:.2f}", *cells[1:]])
    return _table(head, lines) if known else _table([head[0], head[2]], [[line[0], line[2]] for line in lines])


def _kind_table(rows: dict[str, Measured]) -> list[str]:
    found = rows[PAPER_SAMPLER].recall
    if found is None:
        return []
    head = ["recall by kind (events)", *(f"{kind} ({share.total})" for kind, share in found.by_kind.items())]
    return _table(head, [[name, *map(str, row.recall.by_kind.values())] for name, row in rows.items() if row.recall])


def _sentence_table(rows: dict[str, Measured]) -> list[str]:
    found = {name: row.sentences for name, row in rows.items() if row.sentences}
    if not found:
        return []
    truth = found[PAPER_SAMPLER].truth
    title = "Ground Truth Validation" if truth is None or truth.total else f"sum of {len(truth.terms)} terms"
    less = f"less that of {PAPER_SAMPLER}"
    lines = []
    for name, row in found.items():
        sums = [_plain(row.truth.of_present), _signed(row.truth.gain)] if row.truth else ["-", "-"]
        lines.append([name, str(row.outcome), f"{row.gained} / {row.lost}", _signed(row.gain), *sums])
    return _table(["sentences", "outcome", "gained / lost", f"outcome {less}", title, less], lines)


def _terms(table: Table) -> list[str]:
    if not table.missing and not table.settings:
        return []
    lines = [f"- {term}: {how}" for term, how in table.settings.items()]
    lines += [f"- {term}: missing, so that the sum of all five is too: {why}" for term, why in table.missing.items()]
    return ["", "## Terms of Ground Truth Validation", "", *lines]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _plain(value: Estimate) -> str:
    return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"


def _signed(value: Estimate) -> str:
    return f"{value.mean:+.2f} [{value.low:+.2f}, {value.high:+.2f}]"
