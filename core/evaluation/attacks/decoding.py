"""`decode:GRID`: the same prompt drawn at several temperatures and top-p; the worst of k answers counts.

Answers that a model gives one time in twenty are given when somebody asks twenty times (Huang et al. 2024,
"Catastrophic jailbreak of open-source LLMs via exploiting generation"). A rate found so is not that of greedy answers:
it is reported as the worst of k, with k.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from ...config import nearest
from ...data.records import Record
from ...errors import UsageError
from ..sampling import Decoding
from .attempts import Attack, Attempt, Setting, asked

HINT = "give for example --attack 'decode:t=0.7,1.0;p=0.9,1.0;n=2'"
DEFAULTS: Mapping[str, tuple[float, ...]] = {"t": (1.0,), "p": (1.0,), "n": (1.0,)}
MOST_DRAWS = 1000
"""Also the distance of the seeds of two runs, so that runs of different seeds share no draw."""


def decode(value: str) -> Attack:
    """Return the attack that draws n answers at each temperature `t` and top-p `p` of a grid.

    Args:
        value: `t=...;p=...;n=...`, numbers joined by commas; what is left out is 1.

    Returns:
        The attack, with k the number of answers a prompt gets.

    Raises:
        UsageError: An unknown or repeated part, or a number that it cannot have.
    """
    grid = dict(DEFAULTS) | _parts(value)
    if len(grid["n"]) != 1 or grid["n"][0] not in range(1, MOST_DRAWS + 1):
        raise UsageError(f"n must be one whole number from 1 to {MOST_DRAWS} - --attack decode:{value}", hint=HINT)
    if min(grid["t"]) <= 0:
        raise UsageError(f"t must be above 0 - --attack decode:{value}", hint=f"0 draws nothing; {HINT}")
    ways = [Decoding(t, p) for t, p in product(grid["t"], grid["p"])]
    name = ";".join(f"{key}={','.join(f'{number:g}' for number in numbers)}" for key, numbers in grid.items())
    count = int(grid["n"][0])
    return Attack(f"decode:{name}", lambda record, setting: _drawn(record, setting, ways, count), len(ways) * count)


def _drawn(record: Record, setting: Setting, ways: list[Decoding], count: int) -> list[Attempt]:
    return [asked(record, setting.chat, f"t={way.temperature:g};p={way.top_p:g};{draw + 1}",
                  Decoding(way.temperature, way.top_p, MOST_DRAWS * setting.seed + draw))
            for way in ways for draw in range(count)]


def _parts(value: str) -> dict[str, tuple[float, ...]]:
    found: dict[str, tuple[float, ...]] = {}
    for part in value.split(";"):
        key, _, numbers = (text.strip() for text in part.partition("="))
        if key not in DEFAULTS:
            raise UsageError(f"unknown part `{key}` - --attack decode:{value}", hint=nearest(key, DEFAULTS))
        if key in found:
            raise UsageError(f"part `{key}` given twice - --attack decode:{value}", hint="join numbers by commas")
        found[key] = _numbers(numbers, value)
    return found


def _numbers(text: str, value: str) -> tuple[float, ...]:
    try:
        return tuple(dict.fromkeys(float(number) for number in text.split(",")))
    except ValueError as error:
        raise UsageError(f"no number `{text}` - --attack decode:{value}", hint=HINT) from error
