"""A heat strip: one number a module, as a table of layers by kinds of module."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

SHADES = 9
"""Steps of grey from the least (0) to the most (8); every cell has its number, too."""

_LAYER = re.compile(r"(?:^|\.)(\d+)\.")
OUTSIDE = "none"
"""Row of modules that are in no layer."""


@dataclass(frozen=True)
class Strip:
    """The table.

    Attributes:
        columns: Kinds of module: the last part of their names, or what follows the layer where that is not enough.
        layers: (layer, a number a column or None where the layer has no such module), in the order of the layers.
    """

    columns: tuple[str, ...]
    layers: tuple[tuple[str, tuple[float | None, ...]], ...]

    @property
    def largest(self) -> float:
        """The largest number; 0 for none."""
        return max((value for _, cells in self.layers for value in cells if value is not None), default=0.0)

    def shade(self, value: float | None) -> int:
        """Return a step of grey, linear from 0 to the largest number."""
        if value is None or self.largest <= 0:
            return 0
        return min(SHADES - 1, max(0, round((SHADES - 1) * value / self.largest)))


def heat_strip(values: Mapping[str, float]) -> Strip:
    """Arrange numbers of modules by layer and kind.

    Args:
        values: Name of a module, or of its weight, -> its number, at least 0.

    Returns:
        The table; modules outside of layers are in a last row.
    """
    placed = {name: _place(name.removesuffix(".weight")) for name in values}
    short = _are_distinct(set(placed.values()))
    table: dict[str, dict[str, float]] = {}
    for name, (layer, kind) in placed.items():
        table.setdefault(layer, {})[kind.rpartition(".")[2] if short else kind] = values[name]
    columns = tuple(dict.fromkeys(kind for row in table.values() for kind in row))
    order = sorted(table, key=lambda layer: (layer == OUTSIDE, int(layer) if layer != OUTSIDE else 0))
    return Strip(columns, tuple((layer, tuple(table[layer].get(kind) for kind in columns)) for layer in order))


def _place(name: str) -> tuple[str, str]:
    """(layer, kind) of a module: `model.layers.3.mlp.up_proj` is ("3", "mlp.up_proj")."""
    found = _LAYER.search(name)
    return (found[1], name[found.end():]) if found else (OUTSIDE, name)


def _are_distinct(places: set[tuple[str, str]]) -> bool:
    """Tell whether no layer has two modules of the same last name part."""
    return len({(layer, kind.rpartition(".")[2]) for layer, kind in places}) == len(places)
