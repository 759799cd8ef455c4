"""Settings of `restore`."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from ..errors import UsageError
from .checks import not_negative, one_of, positive, rows_a_batch, share_or_rows
from .common import GATE_MODES, CommonConfig
from .names import CURVATURE, ENGINES, NEED_UNALIGNED, OBJECTIVES, PAIRS, PUBLISHED


@dataclass(frozen=True)
class RestoreConfig(CommonConfig):
    """Everything that decides what `restore` writes. Field names are the flags with underscores.

    Attributes:
        base: Reference of the aligned base model, or `-` where the adapter names its base.
        tuned: Reference of the fine-tuned checkpoint.
        harmful: Files of harmful prompts, `FILE[:FORMAT]`; empty means the built-in set.
        safe: Files of safe answers to harmful prompts; empty means the base's own.
        task: Files of task rows with answers.
        benign: Files of benign look-alike prompts; empty means the built-in set.
        untouched: Files of rows of a skill that is in no fit set: measured only.
        train: The file TUNED was trained on, `FILE[:FORMAT]`: the rows that cost safety become harmful rows, the others
            task rows.
        objective: Names of safety objectives joined by `+`.
        engine: How (F + lambda I)^-1 v is computed.
        max_drift: Budget for KL(tuned || restored) on retain rows, nats per answer token.
        max_steps: Outer steps at most; every method may take as many gradient passes as they and the scores need.
        method: `curvature`, a pair of objective and engine such as `anchor-cg`, or a published method.
        strength: Value of a published method's knob; None: as far as the drift budget allows.
        unaligned: Reference of the model that the base was before it was aligned, for methods that need it.
        fit_rows: Harmful rows used to fit, at most; half as many again of retain rows.
        held_out_rows: Rows of each set that results are measured on, at most.
        hold_out_categories: Whole harm categories kept out of the fit part.
        limit: Rows of each set that are read at all, or a fraction of them below 1; a sample by seed.
        max_new_tokens: Longest generated answer, tokens.
        batch_size: Rows a batch, or `auto`: what the free memory is guessed to hold.
        deterministic: Only algorithms that give the same bits every time, on a GPU too; slower there.
        relearn: Harmful rows that base and restored model are trained on to see how soon harm is back; 0: not tried.
        gate: YAML file of rules for what was made; the exit code is then their verdict.
        gate_mode: `advisory` shows the verdict and leaves the exit code to the restoration's own.
    """

    base: str
    tuned: str
    harmful: tuple[str, ...] = ()
    safe: tuple[str, ...] = ()
    task: tuple[str, ...] = ()
    benign: tuple[str, ...] = ()
    untouched: tuple[str, ...] = ()
    train: str | None = None
    objective: str = "anchor"
    engine: str = "ekfac"
    method: str = CURVATURE
    strength: float | None = None
    unaligned: str | None = None
    max_drift: float = 0.01
    max_steps: int = 10
    fit_rows: int = 160
    held_out_rows: int = 128
    hold_out_categories: int = 2
    limit: float | None = None
    max_new_tokens: int = 64
    batch_size: int | str = 32
    rank: int = 16
    deterministic: bool = False
    load_in: str | None = None
    low_memory: bool = False
    controls: bool = True
    relearn: int = 0
    gate: str | None = None
    gate_mode: str = "enforce"
    redact: str = "auto"

    def __post_init__(self) -> None:
        """Refuse values that could only fail later.

        Raises:
            UsageError: A value outside its range, or a name that is no row of its table.
        """
        super().__post_init__()
        one_of("gate_mode", self.gate_mode, GATE_MODES)
        one_of("engine", self.engine, ENGINES)
        one_of("redact", self.redact, ("auto", "all", "none"))
        for term in self.objective.split("+"):
            one_of("objective", term, OBJECTIVES)
        for name in ("max_steps", "fit_rows", "held_out_rows", "max_new_tokens", "rank", "max_drift"):
            positive(name, getattr(self, name))
        if isinstance(size := rows_a_batch(self.batch_size), int):
            positive("batch_size", size)
        share_or_rows("limit", self.limit)
        not_negative("hold_out_categories", self.hold_out_categories)
        not_negative("relearn", self.relearn)
        if self.relearn >= self.held_out_rows:
            raise UsageError(f"no held-out row would be left to ask - --relearn {self.relearn}",
                             hint=f"give fewer than --held-out-rows {self.held_out_rows}")
        _check_method(self)

    @property
    def reads(self) -> tuple[str, ...]:
        """References and files that a run reads."""
        one = (self.base, self.tuned, self.train, self.unaligned, self.gate, self.chat_template)
        return (*(name for name in one if name), *self.harmful, *self.safe, *self.task, *self.benign, *self.untouched)

    def resolved(self) -> RestoreConfig:
        """Return the settings with the objective and engine that the method's name says."""
        objective, engine = PAIRS.get(self.method, (self.objective, self.engine))
        return dataclasses.replace(self, objective=objective, engine=engine)




def _check_method(config: RestoreConfig) -> None:
    """Refuse an unknown method, and settings that the method would not read.

    Raises:
        UsageError: One of them.
    """
    name = config.method
    one_of("method", name, (CURVATURE, *PAIRS, *PUBLISHED))
    if name != CURVATURE:
        said, default = (config.objective, config.engine), (RestoreConfig.objective, RestoreConfig.engine)
        wanted = PAIRS.get(name, default)
        for field, value, own, usual in zip(("objective", "engine"), said, wanted, default, strict=True):
            if value not in (own, usual):
                raise UsageError(f"--method {name} does not read it - --{field} {value}",
                                 hint=f"leave out --{field}, or use --method {CURVATURE}")
    if config.strength is not None:
        if name not in PUBLISHED:
            raise UsageError(f"--method {name} has no strength - --strength {config.strength}",
                             hint="state the drift budget with --max-drift")
        if not 0 <= config.strength < math.inf:
            raise UsageError(f"must be 0 or more - --strength {config.strength}", hint="give a number of 0 or more")
    if (config.unaligned is None) == (name in NEED_UNALIGNED):
        if config.unaligned is None:
            raise UsageError(f"no unaligned model - --method {name} needs --unaligned",
                             hint="give the model that BASE was before it was aligned: --unaligned REF")
        raise UsageError(f"--method {name} does not read it - --unaligned {config.unaligned}",
                         hint=f"leave it out, or use one of: {', '.join(NEED_UNALIGNED)}")
