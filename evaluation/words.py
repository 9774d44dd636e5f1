"""Words of a text, and the lists that scores count by. All is ours, English, and small enough to read."""

from __future__ import annotations

import re
from collections.abc import Sequence

_STOP_WORDS = """
a an the this that these those there here it its he him his she her hers they them their theirs we us our you your i me
my who whom whose which what when where while as of to in on at by for from with without into onto and or but nor so yet
if than is are was were be been being am has have had having do does did will would shall should can could may might
must then before after until
"""
_ACTIONS = """
arrive assist attempt bend:bent block bounce catch:caught charge clear come:came cross crouch dash defend deflect dip
dive:dove dodge draw:drew,drawn dribble drive:drove,driven drop dunk enter extend fake fall:fell,fallen feint finish
flip float fly:flew,flown foul gather go:went,gone guard hit hold:held hook intercept jump kick land launch leave lift
lob loft make:made miss move pass pitch pivot pump punch push raise reach rebound receive release rise:rose,risen roll
rotate run:ran score screen serve shake:shook,shaken shoot:shot slam slide:slid smash spike spin:spun sprint squat
steal:stole,stolen step stop strike:struck swing:swung swish tackle take:took,taken throw:threw,thrown tip toss touch
turn twist volley walk
"""
_NUMBERS = """
one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred
"""
_UNITS = """
feet foot ft inches inch yards yard yd metres meters metre meter m centimetres centimeters cm kilometres kilometers km
seconds second secs sec s milliseconds ms minutes minute min degrees degree deg mph kph km/h m/s percent points
pts pt frames frame fps
"""
_SEQUENCE = "then next before after afterwards finally while until"
_GLOSSARY = """
result: made make makes miss missed misses score scores scored goal airball swish
shot: shot shots layup dunk jumper hook floater throw three-pointer pullup fadeaway serve volley smash putt
contact: rim backboard board net ring iron bat racket racquet club bar glove post
ball: dribble dribbles dribbled dribbling pass passes passed assist handoff crossover pivot turnover steal
defence: defence defense defensive defender block blocked rebound screen guard guarded foul tackle
body: arm arms elbow wrist hand hands knee knees hip hips shoulder shoulders leg legs foot head torso stance grip
motion: release follow-through backswing swing rotation arc trajectory spin bend extension crouch speed angle
place: court baseline sideline paint key wing corner top pitch mound box line lane half-court area penalty
direction: left right above below front behind up down toward away upward downward level diagonal
role: player guard forward centre center shooter defender pitcher batter server goalkeeper striker referee team
"""

# Function words: articles, pronouns, prepositions, conjunctions, auxiliaries. Directions ("up", "down", "off") and
# "not" are not among them: in a description of a shot they are the content.
STOP_WORDS = frozenset(_STOP_WORDS.split())
# Base form, and the past where it is no regular one. "left" is none of leave: it is a side far more often.
ACTIONS = {entry.split(":")[0]: entry.partition(":")[2].split(",") for entry in _ACTIONS.split()}
GLOSSARY = {name: frozenset(terms.split()) for name, terms in (line.split(":") for line in _GLOSSARY.split("\n")[1:-1])}

_WORD = re.compile(r"[^\W_]+(?:['\u2019.][^\W_]+)*")
_COMPOUND = re.compile(r"[^\W_]+(?:-[^\W_]+)+")


def words(text: str) -> list[str]:
    """Words in lower case, in order: "16'" gives 16, "2.8 s" gives 2.8 and s, "mid-range" gives mid and range."""
    return _WORD.findall(text.lower())


def content_words(text: str) -> list[str]:
    """`words` that are no `STOP_WORDS`."""
    return [word for word in words(text) if word not in STOP_WORDS]


def compounds(text: str) -> list[str]:
    """Words with hyphens, whole and in lower case."""
    return _COMPOUND.findall(text.lower())


def actions(text: str) -> set[str]:
    """Base forms of the `ACTIONS` that the text names in any inflection."""
    said = set(words(text))
    return {base for base, forms in _FORMS.items() if forms & said}


def measurements(text: str) -> list[str]:
    """Numbers with a unit, in digits or words, in lower case: 16', 2.8 s, three feet, 40 %."""
    return _MEASUREMENT.findall(text.lower())


def steps(text: str) -> list[str]:
    """Pieces of the text between sentence ends, semicolons, colons and words such as "then", that hold a word."""
    return [piece for piece in _STEP_END.split(text.lower()) if words(piece)]


def _inflections(base: str) -> set[str]:
    """Regular forms of a verb; what English does not use does no harm."""
    stem = base.removesuffix("e")
    last = base[-1] if re.fullmatch(r"(?:qu|[^aeiou])+[aeiou][bdgmnpt]", base) else ""  # drop, dropped; pivot, pivoted
    third = f"{base[:-1]}ies" if re.search(r"[^aeiou]y$", base) else f"{base}es"
    return {base, f"{base}s", third, f"{base}{last}ed" if stem == base else f"{base}d", f"{stem}{last}ing"}


def _alternatives(names: Sequence[str]) -> str:
    """Longest first: "seconds" is not to be read as "s"."""
    return "|".join(re.escape(name) for name in sorted(names, key=lambda name: (-len(name), name)))


_FORMS = {base: frozenset({*_inflections(base), *pasts} - {""}) for base, pasts in ACTIONS.items()}
_DIGITS = r"\d+(?:\.\d+)?"
_MARKS = r"(?:['\u2019\u2032](?:\d+[\"\u2033])?|[\"\u2033\u00b0])(?![^\W\d])"  # of feet, feet and inches, degrees
_UNIT = rf"(?:[ ]?%|[ -]?(?:{_alternatives(_UNITS.split())})\b)"
_MEASUREMENT = re.compile(  # a mark that also opens before the number quotes it
    rf"(?<![\w.'\"\u2018\u201c])(?:{_DIGITS}(?:{_MARKS}|{_UNIT})|(?:{_alternatives(_NUMBERS.split())}){_UNIT})"
)
_STEP_END = re.compile(rf"[.!?;:](?:\s+|$)|\b(?!next to\b)(?:{_alternatives(_SEQUENCE.split())})\b")
