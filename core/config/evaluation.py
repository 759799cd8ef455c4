"""Settings of `eval`."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError
from .checks import one_of, positive, share_or_rows
from .common import GATE_MODES, CommonConfig

SYSTEM_NAMES = ("auto", "base", "tuned", "restored")


@dataclass(frozen=True)
class EvalConfig(CommonConfig):
    """Everything that decides what `eval` measures. Field names are the flags with underscores.

    Attributes:
        model: Reference of what is evaluated; empty where answers that exist already are (`generations`).
        base: Reference of its aligned base, evaluated beside it; where there is none an adapter's record is followed.
        tuned: Reference of the fine-tuned checkpoint that it was restored from, evaluated beside it.
        system: What MODEL is called: `auto` is `restored` with `tuned` or where `saferestore.json` lies beside the
            weights, else `base` for a full checkpoint without `base`, else `tuned`.
        harmful: Sets of harmful prompts, `[NAME=]FILE[:FORMAT]`.
        benign: Sets of benign look-alikes.
        task: Sets of rows with answers.
        untouched: Sets of a skill that is in no fit set.
        set: Sets whose format says what they are for, `NAME=FILE[:FORMAT]`.
        generations: Files of answers that exist already; they are judged without a model.
        judge: Names of judges, or RUBRIC=MODEL.
        attack: Attacks on the harmful sets.
        shots: Solved rows before each task row, joined by commas.
        lm_eval: Tasks of lm-evaluation-harness joined by commas.
        gate: YAML file of rules.
        gate_mode: `advisory` shows the verdict and exits 0.
        baseline: Results that the gate compares with.
        limit: Rows of each set at most, or a fraction of them below 1; a sample by seed.
        max_errors: Judgements that may be unreadable before the run fails; -1 for any number.
        max_new_tokens: Longest answer, tokens.
        batch_size: Prompts a batch, or `auto`.
        redact: `auto` and `all` mask harmful prompts and model output in the files written; `none` shows them.
        deterministic: Only algorithms that give the same bits every time, on a GPU too; slower there.
    """

    model: str
    base: str | None = None
    tuned: str | None = None
    system: str = "auto"
    harmful: tuple[str, ...] = ()
    benign: tuple[str, ...] = ()
    task: tuple[str, ...] = ()
    untouched: tuple[str, ...] = ()
    set: tuple[str, ...] = ()
    generations: tuple[str, ...] = ()
    judge: tuple[str, ...] = ("refusal-wording",)
    attack: tuple[str, ...] = ()
    shots: str = "0"
    lm_eval: str | None = None
    gate: str | None = None
    gate_mode: str = "enforce"
    baseline: str | None = None
    limit: float | None = None
    max_errors: int = -1
    max_new_tokens: int = 64
    batch_size: str = "auto"
    load_in: str | None = None
    redact: str = "auto"
    deterministic: bool = False

    def __post_init__(self) -> None:
        """Refuse values that could only fail later.

        Raises:
            UsageError: A value outside its range, or a name that is no row of its table.
        """
        super().__post_init__()
        one_of("system", self.system, SYSTEM_NAMES)
        one_of("gate_mode", self.gate_mode, GATE_MODES)
        one_of("redact", self.redact, ("auto", "all", "none"))
        positive("max_new_tokens", self.max_new_tokens)
        share_or_rows("limit", self.limit)
        if self.batch_size != "auto" and not (self.batch_size.isdigit() and int(self.batch_size)):
            raise UsageError(f"must be auto or a number above 0 - --batch-size {self.batch_size}",
                             hint="give --batch-size auto")
        if not all(part.strip().isdigit() for part in self.shots.split(",")):
            raise UsageError(f"must be whole numbers joined by commas - --shots {self.shots}",
                             hint="give --shots 0,1,4")
        if self.system != "auto" and self.system in self.beside:
            raise UsageError(f"two systems of one name - --system {self.system}",
                             hint="leave out --system, or the flag of that name")

    @property
    def reads(self) -> tuple[str, ...]:
        """References and files that a run reads, with and without the name before `=` or `:`."""
        one = (self.model, self.base, self.tuned, self.gate, self.baseline, self.chat_template)
        named = (*self.harmful, *self.benign, *self.task, *self.untouched, *self.set, *self.judge)
        return (*(name for name in one if name), *self.generations, *named,
                *(spec.partition("=")[2] for spec in named if "=" in spec),
                *(attack.partition(":")[2] for attack in self.attack if ":" in attack))

    @property
    def beside(self) -> tuple[str, ...]:
        """Names of the systems evaluated beside MODEL."""
        return tuple(name for name in ("base", "tuned") if getattr(self, name) is not None)
