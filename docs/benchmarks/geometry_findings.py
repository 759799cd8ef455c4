"""What the results of `geometry.py` say in words: which word is chosen follows from the numbers alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import fill

from geometry_tables import (
    COLUMNS,
    NAMES,
    Json,
    Mean,
    alike,
    harm,
    kinds,
    minus,
    over_seeds,
    percent,
    share,
    sides,
    sizes,
    text,
)
from saferestore.core.geometry.verdict import HEADLINE, WORDS

CONTROLS = ("shuffled", "another base")
WIDTH = 120
SIDES = {1: "above it", 0: "not told from it", -1: "below it"}
LITTLE = 0.05
"""A rise of the share of harmful answers below which tuning is said to have left safety as it was."""


def findings(cells: Sequence[Json]) -> str:
    """All findings: of all cells, then a list a family."""
    if not cells:
        return "Nothing is measured yet."
    parts = [f"### {family}\n\n" + "\n".join(map(item, of_family(family, own)))
             for (family,), own in kinds(cells, "family")]
    return "\n\n".join([fill(whole(cells), WIDTH), *parts])


def item(line: str) -> str:
    """An item of a list."""
    return fill(f"- {line}", WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)


def whole(cells: Sequence[Json]) -> str:
    """The count of verdicts over all cells, and of cells where tuning raised harm."""
    counts = [f"{sum(cell['verdict'] == name for cell in cells)} {word}" for name, word in WORDS.items()]
    raised = sum(cell["harmful_answers"]["tuned"] - cell["harmful_answers"]["base"] > LITTLE for cell in cells)
    return (f"**C1, whole verdict** (the weakest of four measures): of {len(cells)} cells {', '.join(counts)}. Tuning "
            f"raised the share of harmful answers by more than {LITTLE:g} in {raised} of them.")


def of_family(family: str, cells: Sequence[Json]) -> list[str]:
    """The findings of one family."""
    return [verdict_of(family, cells), raised_harm(cells), against_controls(cells), against_rows(cells, "task"),
            against_rows(cells, "benign"), by_method(cells), by_data(cells), safety_share(cells), moved(cells)]


def share_of(count: int, total: int) -> str:
    """Whether a claim holds, by the share of cells that bear it out."""
    if count == total:
        return "holds in every cell"
    return "holds in most cells" if 2 * count > total else "holds in some cells" if count else "holds in no cell"


def verdict_of(family: str, cells: Sequence[Json]) -> str:
    """Whether C1 holds in a family, and the measures on which it does not."""
    kept = sum(cell["verdict"] == "preserved" for cell in cells)
    failed = {NAMES[name]: sum(cell["outcomes"][name] != "preserved" for cell in cells) for name in HEADLINE}
    failing = [f"{label} ({count})" for label, count in failed.items() if count]
    because = f"; cells that fail, by measure: {', '.join(failing)}" if failing else ""
    return f"**C1 in {family} {share_of(kept, len(cells))}** ({kept} of {len(cells)}){because}."


def raised_harm(cells: Sequence[Json]) -> str:
    """How far each data raised harm."""
    parts = [f"{data} data from {text(over_seeds(own, harm('base')))} to {text(over_seeds(own, harm('tuned')))}"
             for (data,), own in kinds(cells, "data")]
    return f"The share of harmful answers went, on {'; on '.join(parts)}."


def against_controls(cells: Sequence[Json]) -> str:
    """On which measures an unrelated model is as like the base as the tuned model is."""
    return " ".join(against_control(cells, control) for control in CONTROLS)


def against_control(cells: Sequence[Json], control: str) -> str:
    """The same of one control: the measures by the side of 0 that the difference lies on."""
    gaps = {NAMES[name]: over_seeds(cells, minus(alike("harmful rows", name), alike(control, name)))
            for name in HEADLINE}
    known = {label: gap for label, gap in gaps.items() if gap is not None}
    if not known:
        return f"The control `{control}` was not measured."
    lists: dict[str, list[str]] = {}
    for label, gap in known.items():
        word = "above or below it" if gap.half is None else SIDES[gap.sign]
        lists.setdefault(word, []).append(f"{label} by {signed(gap)}")
    parts = [f"{word}: {', '.join(found)}" for word, found in lists.items()]
    return f"Harmful rows of the tuned model against `{control}`{alone(known.values())}, {'; '.join(parts)}."


def alone(gaps: Iterable[Mean]) -> str:
    """What to add where there is no interval over seeds."""
    return " (one base: no interval)" if all(gap.half is None for gap in gaps) else ""


def signed(gap: Mean | None) -> str:
    """A difference with its sign."""
    return text(gap, "{:+.2f}").replace("± +", "± ")


def against_rows(cells: Sequence[Json], other: str) -> str:
    """Whether the landscape of harmful rows is kept better than that of other rows, which the claim says.

    The interval over seeds decides; for one base, on which side of 0 the intervals of most cells lie.
    """
    gaps = {name: over_seeds(cells, minus(alike("harmful rows", name), alike(f"{other} rows", name)))
            for name in HEADLINE}
    signs = [(gap.sign if gap and gap.half is not None else side_of_most(cells, other, name))
             for name, gap in gaps.items()]
    shown = ", ".join(f"{NAMES[name]} {signed(gap)}" for name, gap in gaps.items())
    told = alone([gap for gap in gaps.values() if gap])
    return f"Harmful rows minus {other} rows{told}: {shown}. {stand_out_words(signs, other)}"


def side_of_most(cells: Sequence[Json], other: str, measure: str) -> int:
    """The side of 0 on which more than half of the cells' own intervals lie; 0 for neither."""
    above, below, _ = sides(cells, other, measure)
    return (2 * above > len(cells)) - (2 * below > len(cells))


def stand_out_words(signs: Sequence[int], other: str) -> str:
    """The sentence for signs of differences."""
    more, less = signs.count(1), signs.count(-1)
    if more and not less:
        return f"Harmful rows are kept better than {other} rows on {more} of {len(signs)} measures, worse on none."
    if less and not more:
        return (f"Harmful rows are kept worse than {other} rows on {less} of {len(signs)} measures, better on none: "
                f"what is kept is not a property of harm.")
    if more:
        return f"Better on {more} of {len(signs)} measures and worse on {less}: no one answer."
    return f"No difference that can be told: {other} rows are kept as well as harmful ones."


def by_method(cells: Sequence[Json]) -> str:
    """Whether the fine-tuning method matters: the least and the most like method on the lowest measure."""
    return _spread(cells, "method", "methods")


def by_data(cells: Sequence[Json]) -> str:
    """Whether the data matters."""
    return _spread(cells, "data", "data")


def _spread(cells: Sequence[Json], key: str, word: str) -> str:
    groups = kinds(cells, key)
    kept = "; ".join(f"{name}: {sum(cell['verdict'] == 'preserved' for cell in own)} of {len(own)}"
                     for (name,), own in groups)
    name = max(HEADLINE, key=lambda measure: _range(groups, measure))
    found = [(mean.value, group) for (group,), own in groups if (mean := _mean(own, name))]
    ends = (f" The {word} differ most on {NAMES[name]}: from {min(found)[0]:.2f} ({min(found)[1]}) to "
            f"{max(found)[0]:.2f} ({max(found)[1]}).") if len(found) > 1 else ""
    return f"Cells preserved by {word}: {kept}.{ends}"


def _mean(cells: Sequence[Json], measure: str) -> Mean | None:
    return over_seeds(cells, alike(COLUMNS[0], measure))


def _range(groups: Sequence[tuple[tuple, list[Json]]], measure: str) -> float:
    found = [mean.value for _, own in groups if (mean := _mean(own, measure))]
    return max(found) - min(found) if found else 0.0


def safety_share(cells: Sequence[Json]) -> str:
    """Whether the safety gradient lies outside of the task's leading curvature, which C2 says."""
    if not (k := max(sizes(cells), default=0)):
        return "**C2** was not measured."
    gap = over_seeds(cells, minus(share("tuned", "safety", k), share("tuned", "task", k)))
    chance = over_seeds(cells, minus(share("tuned", "safety", k), share("tuned", "random", k)))
    own, task, random = (over_seeds(cells, share("tuned", name, k)) for name in ("safety", "task", "random"))
    return (f"**C2**: the task's top {k} directions hold {percent(own)}% of the safety gradient at the tuned model and "
            f"{percent(task)}% of the task gradient ({percent(random, '{:.3f}')}% by chance). {apart(gap, chance)}")


def apart(gap: Mean | None, chance: Mean | None) -> str:
    """The sentence for safety's share minus the task's, and minus a random vector's."""
    if gap is None or chance is None:
        return "One of them is not defined."
    if gap.half is None or chance.half is None:
        return "One base: no interval, so nothing is concluded."
    first = {-1: "Safety lies less in them than the task does: this half of C2 holds",
             1: "Safety lies more in them than the task does: C2 fails",
             0: "The seeds do not tell them apart: C2 is not shown"}[gap.sign]
    second = {1: "it is more than by chance, so safety is not free of them",
              -1: "it is less than by chance", 0: "it is not told from chance"}[chance.sign]
    return f"{first}; {second}."


def moved(cells: Sequence[Json]) -> str:
    """Whether safety left the task's leading curvature through tuning."""
    if not (k := max(sizes(cells), default=0)):
        return "Whether safety moved was not measured."
    return f"Through tuning the share of the safety gradient in the top {k} went " + "; ".join(
        f"on {data} data {moved_on(own, k)}" for (data,), own in kinds(cells, "data")) + "."


def moved_on(cells: Sequence[Json], k: int) -> str:
    """The same on one kind of data."""
    gap = over_seeds(cells, minus(share("tuned", "safety", k), share("base", "safety", k)))
    before, after = (percent(over_seeds(cells, share(system, "safety", k))) for system in ("base", "tuned"))
    if gap is None or gap.half is None:
        word = "one base, so no interval"
    else:
        word = {-1: "it fell: it moved out", 1: "it rose: it did not move out, C2 fails",
                0: "no change beyond what the seeds differ by: a move is not shown"}[gap.sign]
    return f"from {before}% at the base to {after}% ({word})"
