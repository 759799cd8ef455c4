"""Names of objectives, engines and methods, which the settings are checked against without torch."""

from __future__ import annotations

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
