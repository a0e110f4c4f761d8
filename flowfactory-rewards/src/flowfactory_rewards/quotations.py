"""What a sentence has in quotation marks, told from apostrophes, feet and inches."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

_STRAIGHT = {'"': '"', "''": "''", "'": "'", "＂": "＂", "＇": "＇"}
_DOUBLE = {"“": "”", "”": "”", "„": '“ ” "', "‟": "”", "❝": "❞", "〝": "〞 〟"}
_SINGLE = {"‘": "’", "’": "’", "‚": "‘ ’ '", "‛": "’", "❛": "❜"}
_ANGLED = {"«": "»", "»": "« »", "‹": "›", "›": "‹ ›", "「": "」", "｢": "｣", "『": "』"}

PAIRS = {sign: frozenset(closers.split()) for sign, closers in (_STRAIGHT | _DOUBLE | _SINGLE | _ANGLED).items()}
"""Each mark that opens a quotation, and those that may close it."""

_CLOSING = frozenset[str]().union(*PAIRS.values())
_APOSTROPHES = frozenset("'＇‘’‛")  # what they are written with
_MARK = re.compile("|".join(sorted(_CLOSING.union(PAIRS), key=len, reverse=True)))
_AND = re.compile(r"(?<=\w\s)(?<!\bthe\s)(?<!\ban\s)(?<!\bletter\s)['‘’]n['’](?=\s\w)", re.IGNORECASE)  # rock 'n' roll
_ELIDED = r"n|em|tis|twas|til|till|cause|cuz|coz|bout|round|neath"
_ELISION = re.compile(rf"(?:\d0s|N|{_ELIDED})\b")
_MAYBE_ELISION = re.compile(rf"(?:\d\ds?|{_ELIDED})\b", re.IGNORECASE)  # Class of '24; but also '24 hours' and 'Round 1'
_DOUBLED = re.compile(r'"([^"]+)"')
_POSSESSIVE = re.compile(r"(?:[sxz]|in)$", re.IGNORECASE)  # the dogs' bowl, rockin'


@dataclass(frozen=True)
class _Mark:
    """A mark, where it is, what it may do there, and whether it is likelier an apostrophe or a unit.

    ``nests``: within a quotation it opens another one, for it is no apostrophe that stands for letters.
    """

    sign: str
    start: int
    end: int
    opens: bool
    closes: bool
    doubtful: bool
    nests: bool

    def ends(self, opener: _Mark) -> bool:
        return self.closes and self.sign in PAIRS[opener.sign]

    def rivals(self, opener: _Mark) -> bool:
        """Whether it opens another quotation that ends as ``opener``'s does."""
        return self.opens and not self.doubtful and not PAIRS[self.sign].isdisjoint(PAIRS[opener.sign])


def find_quotations(text: str) -> list[str]:
    """What stands in quotation marks in ``text``, in order; of quotations within one another the outermost.

    Marks come in pairs, and one without its other is none. An apostrophe within a word is none, one that stands for letters
    (``'90s``, ``rock 'n' roll``) opens none, and no mark after a digit does (``5"``). Where a mark may also be an apostrophe
    or inches and a plain one follows (``'the dogs' bowl'``, ``"a 5" screen"``), the plain one closes. Two such marks are a pair
    about one word or a title (``'80s'``, ``'90s Kids'``). Marks written twice count once (``""Open""``).
    """
    skipped = {place for found in _AND.finditer(text) for place in (found.start(), found.end() - 1)}
    read = [_read_mark(text, found.start(), found.end()) for found in _MARK.finditer(text) if found.start() not in skipped]
    marks = [mark for mark in read if mark is not None]
    quoted, place = [], 0
    while place < len(marks):
        partner = _find_partner(marks[place], marks[place + 1 :], text)
        if partner is not None:
            within = text[marks[place].end : marks[place + 1 + partner].start]
            doubled = _DOUBLED.fullmatch(within) if marks[place].sign == '"' else None
            quoted.append(doubled[1] if doubled else within)
        place += 1 if partner is None else partner + 2
    return quoted


def _find_partner(opener: _Mark, later: Sequence[_Mark], text: str) -> int | None:
    """Where in ``later`` the mark is that closes what ``opener`` opens; None: it opens nothing."""
    if not opener.opens:
        return None
    depth = 1
    for i, mark in enumerate(later):
        if mark.ends(opener):
            apart = _are_apostrophes(opener, text[opener.end : mark.start])
            if mark.doubtful and (apart or _closes_next(opener, later[i + 1 :])):
                continue
            depth -= 1
            if depth == 0:
                return i
        elif mark.rivals(opener) and (mark.nests or not opener.nests):
            depth += 1
    return None


def _are_apostrophes(opener: _Mark, within: str) -> bool:
    """Whether two doubtful marks about ``within`` are no quotation: it is neither one word nor a title, or follows a ``’``."""
    title = not any(word[0].islower() for word in within.split()[1:])
    return opener.doubtful and (opener.sign == "’" or not title)


def _closes_next(opener: _Mark, later: Sequence[_Mark]) -> bool:
    """Whether the next mark without doubt can only close what ``opener`` opens."""
    plain = (mark for mark in later if not mark.doubtful and (mark.ends(opener) or mark.rivals(opener)))
    mark = next(plain, None)
    return mark is not None and mark.ends(opener) and not mark.opens


def _read_mark(text: str, start: int, end: int) -> _Mark | None:
    """The mark at ``text[start:end]``; None where it is an apostrophe within a word."""
    sign, before, after = text[start:end], text[max(0, start - 2) : start], text[end : end + 8]
    previous, following = before[-1:] or " ", after[:1] or " "
    single = sign in _APOSTROPHES
    if single and _spells(previous) and _spells(following):
        return None
    left, right = _leans_on(following, previous), _leans_on(previous, following)
    opens = sign in PAIRS and (left if single else sign not in _CLOSING or left or not right)
    closes = sign in _CLOSING and (right if single else sign not in PAIRS or right or not left)
    unit = previous.isdecimal()
    elided, maybe = (single and opens and found.match(after) is not None for found in (_ELISION, _MAYBE_ELISION))
    otherwise = closes and (unit or (single and _POSSESSIVE.search(before) is not None))
    return _Mark(sign, start, end, opens and not (unit and sign in _CLOSING), closes, elided or otherwise, not maybe)


def _leans_on(inner: str, outer: str) -> bool:
    """Whether a mark between the two belongs to ``inner``: CommonMark's rule for what opens and closes emphasis."""
    return not inner.isspace() and (unicodedata.category(inner)[0] not in "PS" or not _spells(outer))


def _spells(character: str) -> bool:
    """Whether it is a letter or digit of a script that has apostrophes: Chinese, Japanese and Korean have none."""
    return unicodedata.category(character)[0] in "LMN" and unicodedata.east_asian_width(character) not in "WF"
