"""Settings of a run as frozen dataclasses, checked when made, read from and written to YAML (no torch here)."""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import UsageError

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total) by every long stage; `done == total` ends the stage."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Ignore progress."""


DTYPES = ("auto", "bfloat16", "float16", "float32")
GATE_MODES = ("enforce", "advisory")
OBJECTIVES = ("anchor", "ascent", "match")
ENGINES = ("fisher", "diagonal", "ekfac", "cg", "lbfgs", "identity")
PAIRS = {f"{objective}-{engine}": (objective, engine) for objective in OBJECTIVES for engine in ENGINES}
"""Names of our own methods: an objective and an engine."""

CURVATURE = "curvature"
"""The default method: our steps with --objective and --engine."""

PUBLISHED = ("scale", "random", "prune-random", "antidote", "ascent", "ascent-normalised", "graddiff", "npo", "simnpo",
             "refusal-sft", "refusal-sft-1", "refusal-sft-16", "refusal-sft-100", "refusal-sft-no-replay", "dpo",
             "safelora", "resta", "safemerge", "safedelta", "ssd", "sophia", "datainf", "kfade")
"""Published methods and null controls: rows of `restoration.methods.table.METHODS`."""

NEED_UNALIGNED = ("safelora", "resta")


@dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """What all commands share: how models are loaded and asked.

    Attributes:
        dtype: Of the weights; `auto` is as stored.
        device: `auto` is the fastest there is.
        device_map: Spreads a model over devices, as accelerate names it.
        max_memory: Memory that each device may use, with `device_map`.
        chat_template: `auto` (the tokenizer's own), `none`, or a file.
        system_prompt: System turn of every prompt.
        seed: Of samples, splits and draws.
        offline: Never use the network.
        force: Replace what is there; accept another recorded base.
    """

    dtype: str = "auto"
    device: str = "auto"
    device_map: str | None = None
    max_memory: str | None = None
    chat_template: str = "auto"
    system_prompt: str | None = None
    seed: int = 0
    offline: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        """Refuse values that could only fail later.

        Raises:
            UsageError: A value outside its range, or a name that is no row of its table.
        """
        _one_of("dtype", self.dtype, DTYPES)
        _not_negative("seed", self.seed)


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
        objective: Names of safety objectives joined by `+`.
        engine: How (F + lambda I)^-1 v is computed.
        max_drift: Budget for KL(tuned || restored) on retain rows, nats per answer token.
        max_steps: Outer steps at most; gradient passes at most are two more, for every method.
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
    objective: str = "anchor"
    engine: str = "fisher"
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
    gate: str | None = None
    gate_mode: str = "enforce"
    redact: str = "auto"

    def __post_init__(self) -> None:
        """Refuse values that could only fail later.

        Raises:
            UsageError: A value outside its range, or a name that is no row of its table.
        """
        super().__post_init__()
        _one_of("gate_mode", self.gate_mode, GATE_MODES)
        _one_of("engine", self.engine, ENGINES)
        _one_of("redact", self.redact, ("auto", "all", "none"))
        for term in self.objective.split("+"):
            _one_of("objective", term, OBJECTIVES)
        for name in ("max_steps", "fit_rows", "held_out_rows", "max_new_tokens", "rank", "max_drift"):
            _positive(name, getattr(self, name))
        if isinstance(size := rows_a_batch(self.batch_size), int):
            _positive("batch_size", size)
        if self.limit is not None:
            _positive("limit", self.limit)
        _not_negative("hold_out_categories", self.hold_out_categories)
        _check_method(self)

    @property
    def reads(self) -> tuple[str, ...]:
        """References and files that a run reads."""
        one = (self.base, self.tuned, self.unaligned, self.gate, self.chat_template)
        return (*(name for name in one if name), *self.harmful, *self.safe, *self.task, *self.benign, *self.untouched)

    def resolved(self) -> RestoreConfig:
        """Return the settings with the objective and engine that the method's name says."""
        objective, engine = PAIRS.get(self.method, (self.objective, self.engine))
        return dataclasses.replace(self, objective=objective, engine=engine)


def rows_a_batch(text: int | str) -> int | str:
    """Return `auto`, or the number that was typed.

    Raises:
        UsageError: Anything else.
    """
    if text == "auto" or isinstance(text, int):
        return text
    if not str(text).isdigit():
        raise UsageError(f"must be auto or a number above 0 - --batch-size {text}", hint="give --batch-size auto")
    return int(text)


def _check_method(config: RestoreConfig) -> None:
    """Refuse an unknown method, and settings that the method would not read.

    Raises:
        UsageError: One of them.
    """
    name = config.method
    _one_of("method", name, (CURVATURE, *PAIRS, *PUBLISHED))
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
        _one_of("system", self.system, SYSTEM_NAMES)
        _one_of("gate_mode", self.gate_mode, GATE_MODES)
        _one_of("redact", self.redact, ("auto", "all", "none"))
        _positive("max_new_tokens", self.max_new_tokens)
        if self.limit is not None:
            _positive("limit", self.limit)
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


@dataclass(frozen=True)
class ProbeConfig(CommonConfig):
    """Everything that decides what `probe` measures. Field names are the flags with underscores.

    Attributes:
        model: Reference of the checkpoint.
        base: Reference of the base of an adapter; where there is none the adapter's record is followed.
        harmful: Files of harmful prompts, `FILE[:FORMAT]`; empty means the built-in set.
        benign: Files of benign look-alikes; empty means the built-in set.
        task: Files of task rows with answers.
        rows: Rows of each set at most, a sample by seed.
        points: Points along each side of the slices, odd.
        reach: Ends of the slices, in units of the weights' own norms, filter by filter.
        direction_rank: Rank of a direction in each module.
        products: Products of each Lanczos iteration; 0 leaves curvature out.
        probes: Random probes of each spectral density.
        eigenvalues: How many of the largest are reported.
        modules: Last name parts of the modules whose subspace is probed where there is no adapter, joined by commas.
        rank: Coordinates of that subspace a row of each weight.
        max_new_tokens: Longest answer of the model's own, to benign prompts without one.
    """

    model: str
    base: str | None = None
    harmful: tuple[str, ...] = ()
    benign: tuple[str, ...] = ()
    task: tuple[str, ...] = ()
    rows: int = 16
    points: int = 21
    reach: float = 1.0
    direction_rank: int = 8
    products: int = 50
    probes: int = 3
    eigenvalues: int = 5
    modules: str = "all"
    rank: int = 4
    max_new_tokens: int = 48
    batch_size: int = 32
    load_in: str | None = None
    low_memory: bool = False

    def __post_init__(self) -> None:
        """Refuse values that could only fail later.

        Raises:
            UsageError: A value outside its range, or a name that is no row of its table.
        """
        super().__post_init__()
        for name in ("rows", "reach", "direction_rank", "probes", "eigenvalues", "rank", "max_new_tokens",
                     "batch_size"):
            _positive(name, getattr(self, name))
        if self.points < 1 or self.points % 2 == 0:
            raise UsageError(f"must be odd - --points {self.points}", hint="give an odd number, such as 21: the middle "
                             "one is the checkpoint itself")
        if self.products and self.products < 2 * self.eigenvalues:
            raise UsageError(f"too few for {self.eigenvalues} eigenvalues - --products {self.products}",
                             hint=f"give at least {2 * self.eigenvalues}, or 0 for no curvature")


UNRELATED = ("shuffled", "reinitialised")


@dataclass(frozen=True)
class CompareConfig(CommonConfig):
    """Everything that decides what `compare` measures. Field names are the flags with underscores.

    Attributes:
        base: Reference of the aligned base model, or `-` where the adapter names its base.
        tuned: Reference of the fine-tuned checkpoint.
        harmful: Files of harmful prompts; answers that a file lacks are the tuned model's own.
        benign: Files of benign look-alikes; empty means the built-in set.
        task: Files of task rows; empty means general requests with the tuned model's own answers.
        rows: Rows of each set, at most.
        points: Points along each side of the landscape, odd.
        reach: Where the landscape ends, in norms of the base's own weights.
        directions: Further directions along which loss changes are compared.
        step: How far along these.
        rank: Of directions, and of the shared subspace in every module.
        draws: Labels drawn for every answer token of the Fisher matrices.
        top: Dimensions of the leading eigenspaces.
        unrelated: How the unrelated model is made from the base's weights.
    """

    base: str
    tuned: str
    harmful: tuple[str, ...] = ()
    benign: tuple[str, ...] = ()
    task: tuple[str, ...] = ()
    rows: int = 48
    points: int = 7
    reach: float = 1.0
    directions: int = 24
    step: float = 0.2
    rank: int = 2
    draws: int = 4
    top: int = 5
    unrelated: str = "shuffled"
    max_new_tokens: int = 64
    batch_size: int = 32

    def __post_init__(self) -> None:
        """Refuse values that could only fail later.

        Raises:
            UsageError: A value outside its range, or a name that is no row of its table.
        """
        super().__post_init__()
        _one_of("unrelated", self.unrelated, UNRELATED)
        for name in ("rows", "points", "directions", "rank", "draws", "top", "max_new_tokens", "batch_size"):
            _positive(name, getattr(self, name))
        _positive("reach", self.reach)
        _positive("step", self.step)
        if self.points % 2 == 0 or self.points < 3:
            raise UsageError(f"must be odd and at least 3 - --points {self.points}", hint="give --points 7")


SCORE_WAYS = ("identity", "diagonal", "ekfac", "fisher", "cg", "datainf")


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
        way: How the query (F + lambda I)^-1 grad S is computed.
        at: Where rows are scored, between the base (0) and the tuned model (1).
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
    way: str = "ekfac"
    at: float = 0.2
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
        _one_of("way", self.way, SCORE_WAYS)
        _one_of("redact", self.redact, ("auto", "all", "none"))
        for term in self.objective.split("+"):
            _one_of("objective", term, OBJECTIVES)
        for name in ("damping", "max_drift", "top", "fit_rows", "curvature_rows", "max_new_tokens", "batch_size",
                     "rank"):
            _positive(name, getattr(self, name))
        if not 0 <= self.at <= 1:
            raise UsageError(f"must lie from 0 to 1 - --at {self.at}", hint="give 1 for the tuned model itself")
        _removal(self.remove)

    def as_restore(self) -> RestoreConfig:
        """Return the settings of a restoration on the same rows."""
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)
                  if field.name in RestoreConfig.__dataclass_fields__}
        return RestoreConfig(**shared)


def _removal(rule: str) -> None:
    try:
        good = rule == "auto" or rule.isdigit() or 0 <= float(rule) < 1
    except ValueError:
        good = False
    if not good:
        raise UsageError(f"must be auto, a number of rows or a threshold below 1 - --remove {rule}",
                         hint="give --remove auto, --remove 20 or --remove 0.0005")


AnyConfig = RestoreConfig | EvalConfig | ProbeConfig | CompareConfig | ScoreConfig
"""Settings of any command."""


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UsageError(f"unknown value - --{name.replace('_', '-')} {value}", hint=nearest(value, allowed))


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise UsageError(f"must be positive - --{name.replace('_', '-')} {value}", hint="give a number above 0")


def _not_negative(name: str, value: int) -> None:
    if value < 0:
        raise UsageError(f"must not be negative - --{name.replace('_', '-')} {value}", hint="give 0 or more")


def nearest(name: str, allowed: typing.Iterable[str]) -> str:
    """Return `did you mean X?` for the closest allowed name, else the list of them."""
    allowed = sorted(allowed)
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"one of: {', '.join(allowed)}"


def read_yaml(path: Path, known: typing.Iterable[str]) -> dict[str, object]:
    """Read settings from a YAML mapping; keys may use `-` or `_`.

    Args:
        path: The file.
        known: Field names that are allowed.

    Returns:
        Field name to value, lists as tuples.

    Raises:
        UsageError: A missing or unreadable file, no mapping, or an unknown key (the nearest known one is named).
    """
    import yaml  # takes a tenth of the time that `--help` may

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read configuration - {path}: {type(error).__name__}",
                         hint="give --config a readable YAML file") from error
    if not isinstance(content, Mapping):
        raise UsageError(f"no mapping of settings - {path}", hint="write one `key: value` a line")
    settings = {str(key).replace("-", "_"): value for key, value in content.items()}
    allowed = set(known)
    for key in settings:
        if key not in allowed:
            raise UsageError(f"unknown key `{key}` - {path}", hint=nearest(key, allowed))
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}


def to_yaml(config: AnyConfig) -> str:
    """Return the settings as YAML, sorted by name, as `read_yaml` reads them."""
    import yaml

    plain = {key: list(value) if isinstance(value, tuple) else value
             for key, value in dataclasses.asdict(config).items()}
    return yaml.safe_dump(plain, sort_keys=True, allow_unicode=True)
