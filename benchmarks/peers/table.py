"""The table: per stage and whole, ours against each peer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .. import markdown
from ..markdown import NONE
from ..statistics import Ratio, ratio
from .contestants import PEERS, PER_SECOND, REST, SAMPLE, STAGES, TIMED, VGG_ALONE
from .duel import FAILED, MEASURED, Agreement, Duel, Side

HEAD = (
    "stage",
    "peer",
    "svrt",
    "peer's",
    "ratio (95 %)",
    "n",
    "peak MiB, svrt",
    "peer's",
    "of it",
    "outputs agree",
    "computed in, svrt; peer",
    "note",
)
NOTE = (
    "Medians of runs in turn: svrt, peer, svrt, peer. Ratio: the peer's time over svrt's, above 1 svrt is faster; in "
    "brackets the 95 % bootstrap interval. Peak memory is of a process that holds this stage alone; `of it` is svrt's "
    "over the peer's. A row of products at the machine's rate is the least time that the encoder's products allow: "
    "there the inverse of the ratio is how near svrt is."
)


def rows(duels: Sequence[Duel]) -> list[list[str]]:
    """Lines of the table, stage by stage; a peer that could not run has one that says why."""
    found = []
    for stage in STAGES:
        for name, title in TIMED[stage].items():
            for duel in duels:
                if duel.stage == stage:
                    found.append(_row(title, name, duel))
    return found


def _row(title: str, name: str, duel: Duel) -> list[str]:
    if duel.state != MEASURED or duel.ours is None or duel.theirs is None:
        why = f"{duel.state}: {duel.why}"
        return [title, duel.peer, *([NONE] * (len(HEAD) - 3)), why]
    sides = duel.ours, duel.theirs
    if not all(side.samples.get(name) for side in sides):
        return [title, duel.peer, *([NONE] * (len(HEAD) - 3)), "nothing to time: the text ended at once"]
    floor = any(peer.floor and peer.name == duel.peer for peer in PEERS)
    peaks = [side.peak_mib for side in sides]
    memory = [NONE] * 3 if floor else [*(f"{mib:,.0f}" for mib in peaks), f"{peaks[0] / peaks[1]:.2f}"]
    found = compared(duel, name)
    return [
        title,
        duel.peer,
        *(_figure(side, name) for side in sides),
        NONE if found is None else f"{found.ratio:.3f} ({found.low:.3f} to {found.high:.3f})",
        " ".join(dict.fromkeys(str(len(side.samples[name])) for side in sides)),
        *memory,
        agreement_text(duel.agreement),
        "; ".join(side.precision for side in sides),
        "; ".join(f"{who}: {side.note}" for who, side in zip(("svrt", "peer"), sides, strict=True) if side.note),
    ]


def compared(duel: Duel, name: str) -> Ratio | None:
    """The ratio of medians of one thing timed, theirs over ours, with its interval; None without samples of both."""
    if duel.ours is None or duel.theirs is None:
        return None
    ours, theirs = (side.samples.get(name, []) for side in (duel.ours, duel.theirs))
    return ratio([([[ours]], [[theirs]])]) if ours and theirs else None


def _figure(side: Side, name: str) -> str:
    middle = float(np.median(side.samples[name]))
    return markdown.number(1e3 / middle if name in PER_SECOND else middle)


def agreement_text(found: Agreement) -> str:
    """In words, as far as there is something to hold against each other."""
    parts = []
    if found.cosine is not None:
        parts.append(f"cosine {found.cosine:.6f}")
    if found.keyframes is not None:
        parts.append(f"{found.keyframes[0]} of {found.keyframes[1]} keyframes")
    if found.same_text is not None:
        parts.append("same text" if found.same_text else "another text")
    return ", ".join(parts) or NONE


def shares(duels: Sequence[Duel]) -> Iterator[str]:
    """What of our own sampler is not VGG-16, from the samples of the first duel at that stage."""
    for duel in duels:
        if duel.stage == SAMPLE and duel.ours is not None:
            rest, vgg = (float(np.median(duel.ours.samples[name])) for name in (REST, VGG_ALONE))
            yield (
                f"svrt's sampler on this clip, without decoding: VGG-16 {markdown.number(vgg)} ms, everything else "
                f"{markdown.number(rest)} ms, {rest / (rest + vgg):.1%} of it."
            )
            return


def table(duels: Sequence[Duel]) -> str:
    """The table as Markdown, and what is to be said under it."""
    failed = sum(duel.state == FAILED for duel in duels)
    lines = [markdown.table(HEAD, rows(duels)), NOTE, *shares(duels)]
    lines += [f"{failed} of {len(duels)} contests failed; their rows say why."] if failed else []
    return "\n\n".join(lines)
