"""The vocabulary of the rim camera: what a shot is, in five attributes.

The same words label the real clips, the rendered clips and the sentences, so that a sentence can be checked
against a label attribute by attribute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["make", "miss"]
Entry = Literal["left", "right", "top", "front", "unseen"]
Contact = Literal["backboard", "rim", "net"]
Exit = Literal["down", "left", "right", "up", "front", "unseen"]
View = Literal["front", "left", "right"]

OUTCOMES: tuple[Outcome, ...] = ("make", "miss")
ENTRIES: tuple[Entry, ...] = ("left", "right", "top", "front", "unseen")
CONTACTS: tuple[Contact, ...] = ("backboard", "rim", "net")
EXITS: tuple[Exit, ...] = ("down", "left", "right", "up", "front", "unseen")

_SWAPPED = {"left": "right", "right": "left"}


@dataclass(frozen=True)
class Shot:
    """One shot at the hoop.

    `entry` and `exit` are directions in the picture relative to the ring ("front": from or towards the camera);
    `contacts` is what the ball touches, in order, empty for an air ball. A make always leaves down.
    """

    outcome: Outcome
    entry: Entry
    contacts: tuple[Contact, ...]
    exit: Exit

    def mirrored(self) -> Shot:
        """The same shot seen in a mirror: left and right of `entry` and `exit` change places."""
        entry = _SWAPPED.get(self.entry, self.entry)
        exit_ = _SWAPPED.get(self.exit, self.exit)
        return Shot(self.outcome, entry, self.contacts, exit_)  # type: ignore[arg-type]
