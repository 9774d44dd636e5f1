"""Shots in words, and words read back into shots.

Every sentence states outcome, entry, contacts and exit, each in words that `parse` recognises, so that what the model
says can be checked attribute by attribute. The outcome comes first: the first words a decoder commits to are the
ones a viewer asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from .shot import Contact, Entry, Exit, Outcome, Shot

OUTCOME_WORDS: dict[Outcome, tuple[str, ...]] = {
    "make": ("Made shot", "Made basket", "Made"),
    "miss": ("Missed shot", "Missed basket", "Missed"),
}
# Sides part at one and the same word: "from above" would be weighed against "from the", all the others together.
ENTRY_WORDS: dict[Entry, tuple[str, ...]] = {
    "left": ("from the left",),
    "right": ("from the right",),
    "top": ("from the top",),
    "front": ("from the front",),
    "unseen": ("from out of view",),
}
CONTACT_WORDS: dict[Contact, str] = {"backboard": "the backboard", "rim": "the rim", "net": "the net"}
NO_CONTACT = "nothing"
NO_HOOP = "No hoop in view."
EXIT_WORDS: dict[Exit, tuple[str, ...]] = {
    "down": ("drops down", "falls down"),
    "left": ("leaves to the left", "goes out to the left"),
    "right": ("leaves to the right", "goes out to the right"),
    "up": ("bounces up and away", "leaves upward"),
    "front": ("comes back toward the camera", "leaves toward the camera"),
    "unseen": ("is lost from view", "leaves unseen"),
}
ARRIVALS = ("comes in", "arrives", "flies in")
TOUCHES = ("touches", "hits")


@dataclass(frozen=True)
class PartialShot:
    """What a sentence states; None for an attribute that it does not state or contradicts itself about.

    `hoop` is False where it says that no hoop is in view (nothing else is then stated), True where it tells of a shot.
    """

    outcome: Outcome | None
    entry: Entry | None
    contacts: tuple[Contact, ...] | None
    exit: Exit | None
    hoop: bool | None = None

    def complete(self) -> Shot | None:
        """The shot, when every attribute is stated."""
        if self.outcome is None or self.entry is None or self.contacts is None or self.exit is None:
            return None
        return Shot(self.outcome, self.entry, self.contacts, self.exit)


@dataclass(frozen=True)
class Caption:
    """`text`, and the character ranges [start, end) in it that carry an attribute."""

    text: str
    spans: tuple[tuple[int, int], ...]


Pick = Callable[[Sequence[str]], str]


def caption(shot: Shot | None, rng: np.random.Generator | None = None) -> Caption:
    """Describe a shot, or that no hoop is in view; the wording is drawn from `rng`, or the first of each when None."""
    if shot is None:
        return Caption(NO_HOOP, ((0, len(NO_HOOP)),))

    def pick(words: Sequence[str]) -> str:
        return words[0] if rng is None else words[int(rng.integers(len(words)))]

    return _written(shot, pick)


def every_caption(shot: Shot) -> list[str]:
    """All wordings of a shot."""
    texts = [""]
    for choices in _parts(shot):
        texts = [text + choice for text in texts for choice, _ in choices]
    return texts


def _written(shot: Shot, pick: Pick) -> Caption:
    text, spans = "", []
    for choices in _parts(shot):
        words = pick([choice for choice, _ in choices])
        if choices[0][1]:
            spans.append((len(text), len(text) + len(words)))
        text += words
    return Caption(text, tuple(spans))


def _parts(shot: Shot) -> list[list[tuple[str, bool]]]:
    """The sentence as a row of choices, each with whether it carries an attribute."""
    parts: list[list[tuple[str, bool]]] = [
        [(words, True) for words in OUTCOME_WORDS[shot.outcome]],
        [(f": the ball {words} ", False) for words in ARRIVALS],
        [(words, True) for words in ENTRY_WORDS[shot.entry]],
        [(f", {words} ", False) for words in TOUCHES],
        [(_contact_words(shot.contacts), True)],
        [(" and ", False)],
        [(words, True) for words in EXIT_WORDS[shot.exit]],
        [(".", False)],
    ]
    return parts


def _contact_words(contacts: tuple[Contact, ...]) -> str:
    return ", then ".join(CONTACT_WORDS[contact] for contact in contacts) or NO_CONTACT


_OUTCOMES = {"make": r"\bmade\b|\bmake\b|\bscores\b", "miss": r"\bmissed\b|\bmiss\b|\bmisses\b"}
_ENTRIES = {
    "left": r"\bfrom the (?:upper |far )?left\b",
    "right": r"\bfrom the (?:upper |far )?right\b",
    "top": r"\bfrom (?:above|the top)\b",
    "front": r"\bfrom (?:the front|below)\b",
    "unseen": r"\bfrom out of view\b",
}
_EXITS = {
    "down": r"\b(?:drops|falls|goes|leaves) down\b",
    "left": r"\b(?:leaves|goes out) to the left\b",
    "right": r"\b(?:leaves|goes out) to the right\b",
    "up": r"\bbounces up and away\b|\bleaves upward\b",
    "front": r"\btoward the camera\b",
    "unseen": r"\bis lost from view\b|\bleaves unseen\b",
}
_NO_HOOP = re.compile(r"(?<!touches )(?<!hits )\bno (?:hoop|rim|basket)\b")
_TOUCHED = re.compile(r"\b(?:touches|hits) (.+?)(?: and |\.|$)")
_DENIED = re.compile(r"\b(?:no|not|neither|nor)\b")


def _only(patterns: dict[str, str], text: str) -> str | None:
    found = [name for name, pattern in patterns.items() if re.search(pattern, text)]
    return found[0] if len(found) == 1 else None


def parse(text: str) -> PartialShot:
    """Read the attributes that a sentence states; case does not matter."""
    lowered = " ".join(text.lower().split())
    outcome = cast("Outcome | None", _only(_OUTCOMES, lowered))
    entry, exit_ = cast("Entry | None", _only(_ENTRIES, lowered)), cast("Exit | None", _only(_EXITS, lowered))
    contacts = _contacts(lowered)
    if _NO_HOOP.search(lowered):
        told = any(one is not None for one in (outcome, entry, contacts, exit_))
        return PartialShot(None, None, None, None, hoop=None if told else False)
    return PartialShot(outcome, entry, contacts, exit_, hoop=None if outcome is None else True)


def _contacts(text: str) -> tuple[Contact, ...] | None:
    """What the ball touches, in order; None where nothing is said of it, or one thing and its opposite."""
    touched = [match.group(1) for match in _TOUCHED.finditer(text)]
    named = [name for part in touched for name in re.findall(r"backboard|rim|net|nothing", part)]
    if not named or any(_DENIED.search(part) for part in touched):
        return None
    if "nothing" in named:
        return () if set(named) == {"nothing"} else None
    return tuple(cast("list[Contact]", named))
