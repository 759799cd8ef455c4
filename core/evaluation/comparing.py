"""A base, its fine-tuned model and an unrelated one, measured one at a time and set beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..checkpoint.loading import load_model
from ..checkpoint.session import Session
from ..config import CompareConfig, Progress
from ..errors import UsageError
from ..geometry.comparison import Measures, compare_landscapes, itself
from ..geometry.directions import module_shapes
from ..geometry.interpolation import interpolate
from ..geometry.landscape import Landscape, Plan, measure
from ..geometry.slices import Slice
from ..geometry.unrelated import make_unrelated
from ..geometry.verdict import HEADLINE, Finding, find, overall, sentences
from .landscape_rows import ComparedRows


@dataclass(frozen=True)
class Compared:
    """What was found.

    Attributes:
        landscapes: `base`, `tuned` and the unrelated model by its name -> what was measured of it.
        line: Losses from base to tuned.
        similarity: Base against `tuned`, the unrelated model and `itself` -> set -> measure.
        findings: Of the headline measures on harmful rows.
        verdict: One of `geometry.verdict.OUTCOMES`.
        sentences: The verdict in plain words.
    """

    landscapes: Mapping[str, Landscape]
    line: Slice
    similarity: Mapping[str, Mapping[str, Measures]]
    findings: tuple[Finding, ...]
    verdict: str
    sentences: tuple[str, ...]


def measure_models(session: Session, found: ComparedRows, config: CompareConfig,
                   progress: Progress) -> tuple[dict[str, Landscape], Slice]:
    """Measure base, tuned and unrelated model, one in memory at a time, and the line between the first two.

    Args:
        session: The pair.
        found: The rows.
        config: What to measure.
        progress: Told of every stage.

    Returns:
        The landscapes by name, and the line.

    Raises:
        UsageError: Eigenspaces of more dimensions than there are rows for.
    """
    least = min(map(len, found.rows.sets.values()))
    if config.top > least:
        raise UsageError(f"an eigenspace needs as many rows as dimensions - --top {config.top}, {least} rows",
                         hint=f"give --top {least} at most, or more --rows")
    with session.base() as model:
        plan = Plan(found.rows, found.safe, module_shapes(model), config.seed, config.points, config.reach,
                    config.directions, config.step, config.rank, config.draws)
        landscapes = {"base": measure(model, plan, "base", again=True, progress=progress)}
    landscapes["tuned"] = measure(session.adapter().model, plan, "tuned", progress=progress)
    line = interpolate(session, found.rows, progress=progress)
    with session.alone():
        model = load_model(session.pair.base_dir, session.placement)
        make_unrelated(model, config.unrelated, config.seed)
        landscapes[config.unrelated] = measure(model, plan, config.unrelated, shares=False, progress=progress)
        del model
    return landscapes, line


def compare_models(landscapes: Mapping[str, Landscape], line: Slice, config: CompareConfig) -> Compared:
    """Set the landscapes beside each other and judge.

    Args:
        landscapes: Of `measure_models`.
        line: The same.
        config: Dimensions, draws and seed.

    Returns:
        Everything found.
    """
    base, settings = landscapes["base"], {"top": config.top, "draws": config.draws, "seed": config.seed}
    found = {name: compare_landscapes(base, other, **settings) for name, other in landscapes.items() if name != "base"}
    found["itself"] = itself(base, **settings)
    pair, control = found["tuned"]["harmful"], found[config.unrelated]["harmful"]
    most = {name: alike.value for name, alike in found["itself"]["harmful"].items()}
    findings = tuple(find(name, pair[name], control[name], most.get(name) or 1.0) for name in HEADLINE)
    told = sentences(findings, pair, control, found["tuned"]["task"], config.unrelated)
    return Compared(landscapes, line, found, findings, overall(findings), tuple(told))
