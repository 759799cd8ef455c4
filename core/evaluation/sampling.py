"""Answers drawn at random that can be drawn again: draws depend on a prompt's tokens and how it is decoded alone.

Each prompt has its own row of uniform numbers, one for every token of its answer, and a token is chosen where that
number falls in the cumulative probabilities. The generator of `model.generate` is one for the whole batch: there an
answer depends on its neighbours, on the batch size and on where a run was taken up again. Systems asked with one seed
share their numbers as well, which narrows the difference of a pair.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor
from transformers import LogitsProcessor

from ..checkpoint.determinism import cumulative_sum
from ..errors import UsageError


@dataclass(frozen=True)
class Decoding:
    """How the next token is chosen.

    Attributes:
        temperature: Logits are divided by it; 0 takes the most likely token.
        top_p: The likeliest tokens that together have this probability remain (nucleus of Holtzman et al. 2020).
        seed: Of the draws; not used at temperature 0.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that name no distribution.

        Raises:
            UsageError: A negative or infinite temperature, or a top-p outside (0, 1].
        """
        if not 0 <= self.temperature < math.inf:
            raise UsageError(f"temperature must be 0 or more - {self.temperature}", hint="0.7 and 1.0 are usual")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p must lie above 0 and at most at 1 - {self.top_p}", hint="0.9 and 1.0 are usual")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0


GREEDY = Decoding()


def draws(prompt: Sequence[int], how: Decoding, count: int) -> numpy.ndarray:
    """Return the uniform numbers in [0, 1) that choose an answer's tokens, [count], float64.

    Args:
        prompt: The prompt's token ids.
        how: Another seed, temperature or top-p gives other numbers: with the same, the answers of a grid would mostly
            be one answer, and the worst of them little worse.
        count: Tokens at most; more do not change the first.
    """
    asked = f"{how.seed} {how.temperature!r} {how.top_p!r}\n{','.join(map(str, prompt))}"
    digest = hashlib.sha256(asked.encode()).digest()
    return numpy.random.default_rng(int.from_bytes(digest[:16], "big")).random(count)


def choose(logits: Tensor, uniform: Tensor, temperature: Tensor, top_p: Tensor) -> Tensor:
    """Return the token that each row's uniform number chooses.

    Args:
        logits: [B, V].
        uniform: [B] in [0, 1).
        temperature: [B], each above 0.
        top_p: [B], each in (0, 1].

    Returns:
        [B] token ids. The likeliest token comes first in the cumulative probabilities, the lower id at a tie.
    """
    scaled = logits.double() / temperature.unsqueeze(1)
    p, order = torch.softmax(scaled, dim=-1).sort(dim=-1, descending=True, stable=True)
    before = cumulative_sum(p, -1) - p
    kept = p * (before < top_p.unsqueeze(1))  # the token that crosses top-p belongs to the nucleus
    ends = cumulative_sum(kept, -1)
    place = torch.searchsorted(ends, (uniform * ends[:, -1]).unsqueeze(1), right=True)
    last = (kept > 0).sum(dim=-1, keepdim=True) - 1  # rounding must not reach a token of no probability
    return order.gather(1, torch.minimum(place, last).clamp(min=0)).squeeze(1)  # below 0 where logits are NaN


class Sampler(LogitsProcessor):
    """Leaves the drawn token alone with a finite score, so that a greedy search takes it.

    Rows may differ in how they are decoded; a greedy one draws 0, which is the likeliest token.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], decodings: Sequence[Decoding], width: int, count: int) -> None:
        """Draw every number at once.

        Args:
            prompts: The rows of the batch, without padding.
            decodings: How each row is decoded.
            width: Tokens of a padded prompt.
            count: Tokens of an answer at most.
        """
        rows = [numpy.zeros(count) if how.greedy else draws(prompt, how, count)
                for prompt, how in zip(prompts, decodings, strict=True)]
        self._width, self._uniform = width, torch.from_numpy(numpy.stack(rows))
        self._temperature = torch.tensor([how.temperature or 1.0 for how in decodings], dtype=torch.float64)
        self._top_p = torch.tensor([how.top_p for how in decodings], dtype=torch.float64)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """Return scores [B, V] that are -inf apart from one token a row."""
        logits = scores.cpu() if scores.device.type == "mps" else scores  # there are no float64 numbers on mps
        uniform = self._uniform[:, input_ids.shape[1] - self._width]
        token = choose(logits, *(part.to(logits.device) for part in (uniform, self._temperature, self._top_p)))
        return torch.full_like(scores, -math.inf).scatter(1, token.unsqueeze(1).to(scores.device), 0.0)
