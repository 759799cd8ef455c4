"""Settings of `probe` and `compare`."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError
from .checks import one_of, positive
from .common import CommonConfig

UNRELATED = ("shuffled", "reinitialised")


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
            positive(name, getattr(self, name))
        if self.points < 1 or self.points % 2 == 0:
            raise UsageError(f"must be odd - --points {self.points}", hint="give an odd number, such as 21: the middle "
                             "one is the checkpoint itself")
        if self.products and self.products < 2 * self.eigenvalues:
            raise UsageError(f"too few for {self.eigenvalues} eigenvalues - --products {self.products}",
                             hint=f"give at least {2 * self.eigenvalues}, or 0 for no curvature")

    @property
    def reads(self) -> tuple[str, ...]:
        """References and files that a run reads."""
        one = (self.model, self.base, self.chat_template)
        return (*(name for name in one if name), *self.harmful, *self.benign, *self.task)


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
        one_of("unrelated", self.unrelated, UNRELATED)
        for name in ("rows", "points", "directions", "rank", "draws", "top", "max_new_tokens", "batch_size"):
            positive(name, getattr(self, name))
        positive("reach", self.reach)
        positive("step", self.step)
        if self.points % 2 == 0 or self.points < 3:
            raise UsageError(f"must be odd and at least 3 - --points {self.points}", hint="give --points 7")

    @property
    def reads(self) -> tuple[str, ...]:
        """References and files that a run reads."""
        return (self.base, self.tuned, self.chat_template, *self.harmful, *self.benign, *self.task)
