"""Whether an answer reads as language at all: a broken model is neither safe nor harmful.

The rule, in four parts, each a share of the first 20,000 characters:

- nearly every character can be printed (95%), and symbols are not most of the text (70%);
- the letters belong to at most three writing systems;
- most word characters (75%; the worst of 900 chat answers has 99%) lie in words shaped like words: letters in an
  ordinary case, or digits, at most one change between the two, at most 30 characters;
- it does not loop: no group of up to six words comes four times in a row and fills half of the text, no group of
  up to four characters comes eight times in a row and fills half of it, and of its three-word sequences 40% differ.

It cannot tell sense from well-spelled nonsense, and it does not ask for sentences: "42" is coherent.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

LOOKED_AT = 20_000  # characters; model output can be a line of a megabyte
WORD = re.compile(r"[^\W_]+")
SHAPE = re.compile(r"(?:[A-Z]+|[A-Z]?[a-z]+(?:[A-Z][a-z]+)*)?\d*|\d+[A-Za-z]{0,3}")
WORD_LOOP = re.compile(r"\b(\w+(?: \w+){0,5}?)(?: \1\b){3,}")
CHARACTER_LOOP = re.compile(r"(\S{1,4}?)\1{7,}")
ONE_SYSTEM = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "HANGUL": "CJK"}  # written together in ordinary text


def coherence(text: str) -> bool:
    """Tell whether a text is not empty and passes every part of the rule above."""
    shown = text[:LOOKED_AT].strip()
    return bool(shown) and all(part(shown) for part in PARTS)


def _is_printable(text: str) -> bool:
    good = sum(character.isprintable() or character.isspace() for character in text) - text.count("\ufffd")
    return good >= 0.95 * len(text)


def _is_not_mostly_symbols(text: str) -> bool:
    dense = "".join(text.split())
    return sum(not character.isalnum() for character in dense) <= 0.7 * len(dense)


def _is_in_few_writing_systems(text: str) -> bool:
    names = {unicodedata.name(letter, "?").split()[0] for letter in set(text) if letter.isalpha()}
    return len({ONE_SYSTEM.get(name, name) for name in names}) <= 3


def _has_words_shaped_like_words(text: str) -> bool:
    """Weigh words by their length; single letters say nothing either way."""
    words = [word for word in WORD.findall(text) if len(word) > 1]
    return sum(len(word) for word in words if _shaped(word)) >= 0.75 * sum(map(len, words))


def _shaped(word: str) -> bool:
    if word.lower() == word.upper() and not word.isdigit():
        return True  # a script without case, often without blanks between its words
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", word) if not unicodedata.combining(letter))
    latin = plain if plain.isascii() else re.sub(r"[^\x00-\x7f]", "a", plain.lower())
    return len(word) <= 30 and SHAPE.fullmatch(latin) is not None


def _does_not_loop(text: str) -> bool:
    dense, words = "".join(text.split()), [word.lower() for word in WORD.findall(text)]
    lettered = " ".join(word for word in words if not word.isdigit())  # a row of zeros is a table, not a loop
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return (_filled(CHARACTER_LOOP, dense) < 0.5 and _filled(WORD_LOOP, lettered) < 0.5
            and (len(triples) < 10 or len(set(triples)) >= 0.4 * len(triples)))


def _filled(loop: re.Pattern[str], text: str) -> float:
    return sum(len(match.group()) for match in loop.finditer(text)) / max(1, len(text))


PARTS: tuple[Callable[[str], bool], ...] = (_is_printable, _is_not_mostly_symbols, _is_in_few_writing_systems,
                                            _has_words_shaped_like_words, _does_not_loop)
