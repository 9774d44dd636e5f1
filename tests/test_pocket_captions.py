"""The pocket model's sentences carry a shot's attributes in words, and the parser reads them back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from svrt.models.pocket.captions import caption, every_caption, parse
from svrt.models.pocket.shot import CONTACTS, ENTRIES, EXITS, OUTCOMES, Shot

CONTACT_ORDERS = [
    (),
    ("net",),
    *itertools.permutations(CONTACTS, 2),
    *itertools.permutations(CONTACTS),
    ("backboard", "rim", "backboard", "net"),
]
SHOTS = [
    Shot(outcome, entry, contacts, exit_)
    for outcome in OUTCOMES
    for entry in ENTRIES
    for contacts in CONTACT_ORDERS
    for exit_ in EXITS
]


def test_every_wording_of_every_shot_is_read_back() -> None:
    for shot in SHOTS:
        for text in every_caption(shot):
            assert parse(text).complete() == shot, text


def test_the_wording_follows_the_seed_and_varies() -> None:
    shot = SHOTS[7]
    texts = [caption(shot, np.random.default_rng(seed)).text for seed in range(40)]
    assert texts == [caption(shot, np.random.default_rng(seed)).text for seed in range(40)]
    assert len(set(texts)) > 5
    assert set(texts) <= set(every_caption(shot))


def test_spans_mark_the_words_that_carry_attributes() -> None:
    written = caption(Shot("make", "left", ("rim", "net"), "down"))
    words = [written.text[start:end] for start, end in written.spans]
    assert words == ["Made shot", "from the left", "the rim, then the net", "drops down"]


def test_the_sides_part_at_one_word_so_that_each_is_weighed_against_each() -> None:
    words = [caption(Shot("make", side, ("net",), "down")).text.split() for side in ("left", "right", "top", "front")]
    rows = list(zip(*words, strict=True))
    differ = [at for at, row in enumerate(rows) if len(set(row)) > 1]
    assert len(differ) == 1 and len(set(rows[differ[0]])) == 4


def test_a_mirrored_shot_swaps_left_and_right_and_nothing_else() -> None:
    shot = Shot("miss", "left", ("backboard", "rim"), "right")
    assert shot.mirrored() == Shot("miss", "right", ("backboard", "rim"), "left")
    assert all(one.mirrored().mirrored() == one for one in SHOTS)
    assert "from the right" in caption(shot.mirrored()).text


@pytest.mark.parametrize("text", ["", "A dog runs.", "made missed touches the dog and", "from the left from the right"])
def test_what_is_not_stated_or_contradicts_itself_is_left_open(text: str) -> None:
    partial = parse(text)
    assert partial.complete() is None
    assert partial.outcome is None
    assert partial.entry is None


def test_a_shot_without_a_hoop_is_neither() -> None:
    partial = parse("Made shot: the ball comes in from above, touches the net and drops down. No hoop in view.")
    assert (partial.outcome, partial.entry, partial.contacts, partial.exit, partial.hoop) == (None,) * 5
    assert parse("There is no hoop in view, only trees.").hoop is False


@pytest.mark.parametrize(
    ("text", "contacts"),
    [
        ("Missed shot: it touches no rim.", None),
        ("Missed shot: it hits neither the rim nor the backboard.", None),
        ("Missed shot: it touches nothing and drops down. It hits the backboard.", None),
        ("Missed shot: it touches the rim and goes on. It hits the backboard.", ("rim", "backboard")),
        ("Missed shot: it touches nothing and drops down.", ()),
    ],
)
def test_all_that_a_text_says_of_contacts_is_read(text: str, contacts: tuple[str, ...] | None) -> None:
    partial = parse(text)
    assert (partial.outcome, partial.contacts, partial.hoop) == ("miss", contacts, True)


def test_part_of_a_sentence_gives_part_of_a_shot() -> None:
    partial = parse("Missed shot: the ball comes in from above, hits the")
    assert (partial.outcome, partial.entry, partial.contacts, partial.exit) == ("miss", "top", None, None)
