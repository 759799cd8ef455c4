"""How our steps are taken: their budget and limits, and the drift that each may reach."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import RestoreConfig

MOST_SLACK = 40.0
"""Of the budget, however small it is."""


@dataclass(frozen=True)
class Settings:
    """How it is minimised.

    Attributes:
        engine: Name of a curvature engine.
        max_drift: Budget for D on the fit rows, nats per token, obeyed by the outcome.
        max_steps: Accepted steps at most.
        drift_weight: mu: P that is paid for a fall of S is worth this much of it at least.
        path_slack: How many times the budget D may be on the way; what is allowed shrinks to the budget itself over
            the first 70% of the steps. Held to the budget from the start, steps creep along its boundary.
        path_drift: D that the way may come to where that is more, up to `MOST_SLACK` times the budget: the way out and
            back is as long for a small budget as for a large one.
        damping: lambda as a fraction of the mean diagonal of F.
        tries: Step lengths tried from one gradient before giving up.
        max_products: Products a solve may take.
        aim: Steps aim at this share of the base's value of S, and stop there: those that aim at the value itself slow
            down before it, and leave unseen prompts answered with the budget all but unspent.
        tail: S, nats per token, below which it is taken to fall exponentially along a step: `tail_fall`, so that a few
            long steps do what many short ones would fit to the rows.
        furthest: As many times S the slope may foretell there.
        tail_drift: D that a step may be foretold to come to for being longer so, half of the budget at most: with half
            of a large budget it made many benign prompts refused.
        idle_drift: D below which none is won back, a tenth of the budget at most: S would pay for what serves nothing.
        near: A term of S counts as restored once this fraction of its gap to the base's value is all that is left.
        least_decrease: A step that lowers J by less than this fraction of S at the start is the last one.
        seed: Of sampled labels.
        low_memory: See `EngineInputs`.
    """

    engine: str = "ekfac"
    max_drift: float = 0.01
    max_steps: int = 10
    drift_weight: float = 0.1
    path_slack: float = 4.0
    path_drift: float = 0.04
    damping: float = 0.1
    tries: int = 8
    max_products: int = 4
    aim: float = 0.5
    tail: float = 0.3
    furthest: float = 3.0
    tail_drift: float = 0.005
    idle_drift: float = 0.001
    near: float = 0.0005
    least_decrease: float = 0.0001
    seed: int = 0
    low_memory: bool = False

    @property
    def slack(self) -> float:
        """How many times the budget D may be at first."""
        return max(self.path_slack, min(self.path_drift / self.max_drift, MOST_SLACK))

    def allowed(self, number: int) -> float:
        """Return the drift that step `number` (from 1) may reach, nats per token."""
        share = max(0.0, 1.0 - number / max(1.0, 0.7 * self.max_steps))
        return self.max_drift * self.slack ** share


def solver_settings(config: RestoreConfig) -> Settings:
    """Return the settings of the steps for a configuration."""
    return Settings(engine=config.engine, max_drift=config.max_drift, max_steps=config.max_steps, seed=config.seed,
                    low_memory=config.low_memory)
