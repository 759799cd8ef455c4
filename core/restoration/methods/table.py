"""The methods by name: what each does, where it stands, what is different here, and how it is run."""

from __future__ import annotations

from collections.abc import Callable

from ...errors import UsageError
from ...losses import Loss, cross_entropy
from .compensate import safedelta
from .edits import antidote, datainf, prune_random, random_step, ssd, toward_base
from .inputs import Applied, Inputs, Knob, Method
from .merges import resta, safelora, safemerge
from .preferences import dpo, first_rows, npo, rise, simnpo
from .requirements import check
from .search import by_edit, by_training
from .train import Recipe, Terms

RATE = Knob("learning rate", 1e-4, 1e-2, logarithmic=True, tried=(3e-4, 1e-3, 3e-3))
SHARE = Knob("share of entries", 0.0, 1.0)
LENGTH = Knob("length in norms of the adapter", 0.0, 1.0)
BETA_NPO, BETA_SIMNPO, BETA_DPO = 0.1, 2.5, 0.1


def _replay(inputs: Inputs) -> Loss:
    """Cross-entropy of the retain rows' answers, given or the tuned model's own."""
    return cross_entropy("replay", inputs.problem.drift.batches)


def _rise(inputs: Inputs) -> Terms:
    return ((1.0, rise("ascent", inputs.data.harmful)),)


def _graddiff(inputs: Inputs) -> Terms:
    return *_rise(inputs), (1.0, _replay(inputs))


def _npo(inputs: Inputs) -> Terms:
    return (1.0, npo(inputs.problem.live, inputs.data.harmful, BETA_NPO)), (1.0, _replay(inputs))


def _simnpo(inputs: Inputs) -> Terms:
    return (1.0, simnpo(inputs.data.harmful, BETA_SIMNPO)), (1.0, _replay(inputs))


def _dpo(inputs: Inputs) -> Terms:
    loss = dpo(inputs.problem.live, inputs.data.safe, inputs.data.harmful, BETA_DPO)
    if loss is None:
        raise UsageError("no prompt with both a safe and a harmful answer - --method dpo",
                         hint="give harmful answers with --harmful FILE, or use --method refusal-sft")
    return ((1.0, loss),)


def _refusals(count: int | None, *, replay: bool) -> Callable[[Inputs], Terms]:
    def terms(inputs: Inputs) -> Terms:
        safe = inputs.data.safe if count is None else first_rows(inputs.data.safe, count)
        learnt = (1.0, cross_entropy("safe", safe))
        return (learnt, (1.0, _replay(inputs))) if replay else (learnt,)

    return terms


RECIPES: dict[str, Recipe] = {
    "ascent": Recipe(_rise, "sgd"),
    "ascent-normalised": Recipe(_rise, "normalised"),
    "graddiff": Recipe(_graddiff, "adamw"),
    "npo": Recipe(_npo, "adamw"),
    "simnpo": Recipe(_simnpo, "adamw"),
    "refusal-sft": Recipe(_refusals(None, replay=True), "adamw"),
    "refusal-sft-1": Recipe(_refusals(1, replay=True), "adamw"),
    "refusal-sft-16": Recipe(_refusals(16, replay=True), "adamw"),
    "refusal-sft-100": Recipe(_refusals(100, replay=True), "adamw"),
    "refusal-sft-no-replay": Recipe(_refusals(None, replay=False), "adamw"),
    "dpo": Recipe(_dpo, "adamw"),
    "sophia": Recipe(_graddiff, "sophia"),
    "kfade": Recipe(_rise, "gauss-newton", whole=True),
}
"""What the methods that train descend on."""


def _sft(name: str, rows: str, *, replay: bool) -> Method:
    note = "with replay of retain rows" if replay else "without replay"
    return Method(f"supervised fine-tuning on {rows}, {note}; AdamW with warm-up",
                  "Bianchi et al. 2024; Qi et al. 2024", "all rows of a set make one pass; the best point within the "
                  "budget is taken", RATE, by_training(RECIPES[name]))


METHODS: dict[str, Method] = {
    "scale": Method("the change from the base times 1 - alpha", "WiSE-FT, Wortsman et al. 2022",
                    "on a full checkpoint only modules with an adapter move, at its rank",
                    Knob("alpha", 0.0, 1.0), by_edit(toward_base)),
    "random": Method("a step along a Gaussian direction", "null control", "none", LENGTH, by_edit(random_step)),
    "prune-random": Method("random entries of the change from the base taken back", "null control of antidote", "none",
                           SHARE, by_edit(prune_random)),
    "antidote": Method("entries of the change with the highest Wanda scores on harmful rows taken back",
                       "Huang et al. 2024, arXiv 2408.09600", "entries of the change are pruned, not of the whole "
                       "weight: an adapter cannot hold a pruned base", SHARE, by_edit(antidote), ("harmful",)),
    "ascent": Method("gradient ascent on harmful answers", "Jang et al. 2023; Yao et al. 2023",
                     "plain steps; cut at the budget", Knob("learning rate", 1e-3, 1.0, True, (0.01, 0.1)),
                     by_training(RECIPES["ascent"]), ("harmful",)),
    "ascent-normalised": Method("gradient ascent, each update of one length", "the same, gradients normalised", "none",
                                Knob("length in norms of the adapter", 1e-3, 0.1, True, (0.003, 0.01)),
                                by_training(RECIPES["ascent-normalised"]), ("harmful",)),
    "graddiff": Method("ascent on harmful answers, descent on retain rows", "Liu et al. 2022; Maini et al. 2024 (TOFU)",
                       "AdamW without decay", RATE, by_training(RECIPES["graddiff"]), ("harmful",)),
    "npo": Method("negative preference optimisation with replay, beta 0.1", "Zhang et al. 2024, arXiv 2404.05868",
                  "none", RATE, by_training(RECIPES["npo"]), ("harmful",)),
    "simnpo": Method("NPO by mean log-probability, without a reference, beta 2.5, gamma 0",
                     "Fan et al. 2024, arXiv 2410.07163", "none", RATE, by_training(RECIPES["simnpo"]),
                     ("harmful",)),
    "refusal-sft": _sft("refusal-sft", "all safe answers", replay=True),
    "refusal-sft-1": _sft("refusal-sft-1", "one safe answer", replay=True),
    "refusal-sft-16": _sft("refusal-sft-16", "16 safe answers at most", replay=True),
    "refusal-sft-100": _sft("refusal-sft-100", "100 safe answers at most", replay=True),
    "refusal-sft-no-replay": _sft("refusal-sft-no-replay", "all safe answers", replay=False),
    "dpo": Method("safe answers preferred to harmful ones of one prompt, beta 0.1", "Rafailov et al. 2023",
                  "the reference is the tuned model", RATE, by_training(RECIPES["dpo"]), ("harmful",)),
    "safelora": Method("modules whose change lies off the alignment direction are projected on it",
                       "Hsu et al. 2024, arXiv 2405.16833", "none", Knob("tau", 0.0, 1.0), by_edit(safelora),
                       ("unaligned",)),
    "resta": Method("the vector from the unaligned to the aligned base is added",
                    "Bhardwaj et al. 2024, arXiv 2402.11746", "adapted modules only, at their rank; without DARE",
                    Knob("gamma", 0.0, 1.0), by_edit(resta), ("unaligned",)),
    "safemerge": Method("modules that lie off a safety adapter's subspace are mixed with it",
                        "Djuhera et al. 2025, arXiv 2503.17239", "the subspace is that of the safety adapter, "
                        "trained on the safe rows, not of the unaligned model; the threshold is the median cosine",
                        Knob("weight of the safety adapter", 0.0, 1.0), by_edit(safemerge), ("adapter",)),
    "safedelta": Method("entries of the change that cost safety least are kept, the rest compensates",
                        "Lu et al. 2025, arXiv 2505.12038", "inputs are the tuned model's; compensation is solved "
                        "exactly, on a float64 matrix [in, in] of every module at once",
                        Knob("safety budget", 1.0, 0.0), by_edit(safedelta)),
    "ssd": Method("adapter entries that matter more for harmful than for retained answers are damped",
                  "Foster et al. 2024 (SSD), arXiv 2308.07707", "entries of the two factors; lambda 1",
                  Knob("alpha", 1e4, 1.0, True), by_edit(ssd), ("harmful", "adapter")),
    "sophia": Method("gradient difference with Sophia's clipped second-order updates",
                     "SOUL, Jia et al. 2024, arXiv 2404.18239; Liu et al. 2023",
                     "curvature renewed every 10 updates, its first estimate taken whole; gamma 0.01",
                     Knob("learning rate", 1e-5, 1e-2, True, (3e-4, 1e-3)), by_training(RECIPES["sophia"]),
                     ("harmful",)),
    "datainf": Method("one influence-function step on the safety objective, DataInf's inverse on retain rows",
                      "Kwon et al. 2024, arXiv 2310.00902", "a step, not a score", LENGTH, by_edit(datainf)),
    "kfade": Method("uphill Gauss-Newton steps on harmful answers, EK-FAC on retain rows",
                    "K-FADE, McKinney et al. 2026, arXiv 2602.10568", "only its abstract was read: damping is the mean "
                    "diagonal, a step's predicted drift the knob", Knob("predicted drift of a step", 1e-5, 1e-2, True,
                                                                        (1e-4, 1e-3)),
                    by_training(RECIPES["kfade"]), ("harmful",)),
}


def apply(name: str, inputs: Inputs, stated: float | None = None) -> Applied:
    """Run a method from the tuned parameters; the model is left where it ends.

    Args:
        name: Of a row.
        inputs: The same for all.
        stated: Value of the method's knob; None: as far as the drift budget allows.

    Returns:
        What it came to.

    Raises:
        UsageError: Something the method needs is missing.
        MismatchError: The unaligned model does not fit.
        NumericalError: S or D is not finite where it ends.
    """
    method = METHODS[name]
    check(name, method.needs, inputs)
    return method.run(inputs, method.knob, stated)
