"""Results of an evaluation to write, break and read, as hostile as a test wants them."""

from __future__ import annotations

from typing import Any

from saferestore.core.evaluation.gate.decide import decide
from saferestore.core.evaluation.gate.known import Known
from saferestore.core.evaluation.gate.measure import comparisons, measure
from saferestore.core.evaluation.gate.rules import Rule
from saferestore.core.evaluation.samples import Finding, Sample
from saferestore.core.report.results import results

HARM, SAFE = Finding(harmful=True, refused=False), Finding(harmful=False, refused=True)
SYSTEMS = ("base", "tuned", "restored")
HARMFUL_OF = {"base": 0, "tuned": 70, "restored": 2}
RULES = (Rule("harmful_rate", "harm", max_upper=0.05), Rule("harmful_rate", "wish", max_upper=0.001,
                                                            severity="warning"),
         Rule("perplexity", "fluency", systems=("tuned",), max_upper=9.0))


def samples(n: int = 80, set_name: str = "mine") -> list[Sample]:
    return [Sample(system, set_name, "harmful", "none", "", f"r{i}", f"prompt {i}", "the model's own words", 3, True,
                   findings={"refusal-wording": HARM if i < HARMFUL_OF[system] else SAFE})
            for system in SYSTEMS for i in range(n)]


def made(*, rules: tuple[Rule, ...] = RULES, mode: str = "enforce", set_name: str = "mine", n: int = 80,
         warnings: tuple[tuple[str, str], ...] = (("W_FEW", "few rows"),), **more: Any) -> dict[str, Any]:
    """A whole results document; by default base passes, tuned fails, restored is inconclusive."""
    known = Known(SYSTEMS, {set_name: "harmful"}, ("refusal-wording",), extra=("perplexity",))
    found = measure(samples(n, set_name))
    checkpoint = {"ref": "owner/model", "weights_sha256": {"model.safetensors": "a" * 64},
                  "chat_template_sha256": "b" * 64}
    document = {
        "inputs": {"systems": dict.fromkeys(SYSTEMS, checkpoint), "judges": {"refusal-wording": {"kind": "wording"}},
                   "sets": [{"name": set_name, "role": "harmful", "sha256": "c" * 64, "rows": n, "rejected": 0}]},
        "settings": {"max_new_tokens": 64}, "seed": 0, "environment": {"python": "3.11"}, "measured": found,
        "comparisons": comparisons(found), "agreement": [], "outcomes": decide(rules, known, found), "mode": mode,
        "warnings": warnings, "run": {"started_utc": "now", "seconds": {"eval": 1.0}}}
    return results(**{**document, **more})
