"""Settings of `score`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..errors import UsageError
from .checks import one_of, positive
from .common import CommonConfig
from .names import OBJECTIVES
from .restore import RestoreConfig

SCORE_WAYS = ("identity", "diagonal", "ekfac", "fisher", "cg", "datainf")
AUTO_WAY = "auto"
"""`ekfac` where its factors fit the memory, else `diagonal`."""

AUTO_POINT = "auto"
"""Where safety begins to be lost on the way from the base to the tuned model."""


@dataclass(frozen=True)
class ScoreConfig(CommonConfig):
    """Everything that decides what `score` finds. Field names are the flags with underscores.

    Attributes:
        base: Reference of the aligned base model, or `-` where the adapter names its base.
        tuned: Reference of the fine-tuned checkpoint.
        train: The file it was trained on, `FILE[:FORMAT]`; None scores modules alone.
        harmful: Files of harmful prompts, `FILE[:FORMAT]`; empty means the built-in set.
        safe: Files of safe answers to harmful prompts; empty means the base's own.
        task: Files of task rows with answers, retain rows beside benign and general prompts.
        benign: Files of benign look-alike prompts; empty means the built-in set.
        objective: Names of safety objectives joined by `+`: S.
        way: How the query (F + lambda I)^-1 grad S is computed; `auto`: `ekfac` where its factors fit, else `diagonal`.
        at: Where rows are scored, between the base (0) and the tuned model (1); `auto`: where safety begins to be lost.
        damping: lambda as a fraction of the mean diagonal of F.
        max_drift: Drift that the modules' own steps together are predicted to spend, nats per answer token.
        remove: Rows that a clean file leaves out: `auto`, a number of rows, or a threshold below 1, nats per token.
        per_token: Keep the influence of every answer token.
        top: Rows and modules shown.
        fit_rows: Harmful prompts that S is made of, at most; half as many again of retain rows.
        curvature_rows: Training rows that F is estimated on, at most.
        max_new_tokens: Longest generated answer, tokens.
        redact: `auto` and `all` mask the text of training rows; `none` shows its beginning.
    """

    base: str
    tuned: str
    train: str | None = None
    harmful: tuple[str, ...] = ()
    safe: tuple[str, ...] = ()
    task: tuple[str, ...] = ()
    benign: tuple[str, ...] = ()
    objective: str = "anchor"
    way: str = AUTO_WAY
    at: str | float = AUTO_POINT
    damping: float = 0.1
    max_drift: float = 0.01
    remove: str = "auto"
    per_token: bool = False
    top: int = 20
    fit_rows: int = 64
    curvature_rows: int = 256
    max_new_tokens: int = 64
    batch_size: int = 32
    rank: int = 16
    load_in: str | None = None
    low_memory: bool = False
    redact: str = "auto"

    def __post_init__(self) -> None:
        """Refuse values that could only fail later.

        Raises:
            UsageError: A value outside its range, or a name that is no row of its table.
        """
        super().__post_init__()
        one_of("way", self.way, (AUTO_WAY, *SCORE_WAYS))
        one_of("redact", self.redact, ("auto", "all", "none"))
        for term in self.objective.split("+"):
            one_of("objective", term, OBJECTIVES)
        for name in ("damping", "max_drift", "top", "fit_rows", "curvature_rows", "max_new_tokens", "batch_size",
                     "rank"):
            positive(name, getattr(self, name))
        _point(self.at)
        _removal(self.remove)

    @property
    def reads(self) -> tuple[str, ...]:
        """References and files that a run reads."""
        return self.as_restore().reads

    @property
    def point(self) -> float | None:
        """Where rows are scored; None for `auto`."""
        return None if self.at == AUTO_POINT else float(self.at)

    def as_restore(self) -> RestoreConfig:
        """Return the settings of a restoration on the same rows."""
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)
                  if field.name in RestoreConfig.__dataclass_fields__}
        return RestoreConfig(**shared)


def score_of(config: RestoreConfig) -> ScoreConfig:
    """Return the settings by which a restoration finds harmful rows in `train`; the size of the sample is `score`'s."""
    kept = {field.name for field in dataclasses.fields(ScoreConfig)} - {"fit_rows", "batch_size"}
    shared = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.name in kept}
    size = config.batch_size if isinstance(config.batch_size, int) else ScoreConfig.batch_size
    return ScoreConfig(**shared, batch_size=size)


def _point(at: str | float) -> None:
    try:
        good = at == AUTO_POINT or 0 <= float(at) <= 1
    except ValueError:
        good = False
    if not good:
        raise UsageError(f"must be auto or a number from 0 to 1 - --at {at}", hint="give 1 for the tuned model itself")


def _removal(rule: str) -> None:
    try:
        good = rule == "auto" or rule.isdigit() or 0 <= float(rule) < 1
    except ValueError:
        good = False
    if not good:
        raise UsageError(f"must be auto, a number of rows or a threshold below 1 - --remove {rule}",
                         hint="give --remove auto, --remove 20 or --remove 0.0005")
