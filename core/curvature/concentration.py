"""Where in the model the ends of a spectrum lie."""

from __future__ import annotations

from .spectrum import Spectrum

COORDINATES = (".lora_A.weight", ".lora_B.weight", ".coordinates")
"""What a leaf's name has after that of its module."""


def module_shares(found: Spectrum) -> dict[str, float]:
    """Return how much of the leading curvature each module has: the share of sum |l| |v_module|^2 over all pairs.

    Args:
        found: Pairs (l, v) of both ends.

    Returns:
        Module -> share, in the order of the leaves; they sum to 1, or are all 0 where every eigenvalue is.
    """
    sums: dict[str, float] = {}
    for pair in (*found.largest, *found.smallest):
        for leaf, part in found.vector(pair).items():
            module = module_of(leaf)
            sums[module] = sums.get(module, 0.0) + abs(pair.value) * float(part.double().square().sum())
    whole = sum(sums.values())
    return {module: value / whole if whole > 0 else 0.0 for module, value in sums.items()}


def module_of(leaf: str) -> str:
    """Return the module that a leaf moves: its name without the factor's."""
    return next((leaf.removesuffix(end) for end in COORDINATES if leaf.endswith(end)), leaf)
