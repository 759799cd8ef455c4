"""Which servers take which adapter."""

from __future__ import annotations

from typing import Any

import pytest
from saferestore.core.checkpoint.runtimes import AdapterFacts, acceptances

PLAIN = ("base_model.model.q.lora_A.weight", "base_model.model.q.lora_B.weight")


def verdicts(tensors: tuple[str, ...] = PLAIN, ranks: tuple[int, ...] = (8,), **config: Any) -> dict[str, str]:
    return {each.runtime: each.verdict
            for each in acceptances(AdapterFacts({"r": 8, "lora_alpha": 16, **config}, tensors, ranks))}


ACCEPTED = {"PEFT": "accepts", "vLLM": "accepts", "llama.cpp": "accepts", "MLX": "refuses", "TGI": "accepts"}


def test_a_plain_adapter_is_taken_by_all_but_the_one_with_its_own_format() -> None:
    assert verdicts() == ACCEPTED


@pytest.mark.parametrize(("config", "changed"), [
    ({"use_dora": True}, {"vLLM": "refuses", "llama.cpp": "refuses", "TGI": "refuses"}),
    ({"use_rslora": True}, {"llama.cpp": "changes"}),
    ({"modules_to_save": ["lm_head"]}, {"vLLM": "refuses", "TGI": "refuses"}),
    ({"bias": "lora_only"}, {"vLLM": "refuses", "llama.cpp": "refuses"}),
    ({"lora_bias": True}, {"vLLM": "refuses", "llama.cpp": "refuses"}),
    ({"rank_pattern": {"q": 4}}, {"vLLM": "changes", "TGI": "changes"}),
    ({"alpha_pattern": {"q": 4}}, {"vLLM": "changes", "llama.cpp": "changes", "TGI": "changes"}),
    ({"r": 256}, {"TGI": "refuses"}), ({"r": 1024}, {"vLLM": "refuses", "TGI": "refuses"}),
], ids=str)
def test_settings_decide(config: dict[str, Any], changed: dict[str, str]) -> None:
    assert verdicts(**config) == ACCEPTED | changed


def test_a_tensor_that_is_no_factor_is_named() -> None:
    facts = AdapterFacts({"r": 8}, (*PLAIN, "base_model.model.lm_head.weight"), (8,))
    why = {each.runtime: each.why for each in acceptances(facts)}
    assert "lm_head" in why["vLLM"] and "lm_head" in why["llama.cpp"]


def test_the_rank_of_a_module_counts_as_much_as_the_setting() -> None:
    assert verdicts(ranks=(8, 256))["TGI"] == "refuses"


@pytest.mark.parametrize(("rank", "note"), [(16, ""), (17, "with --max-lora-rank 32"),
                                            (300, "with --max-lora-rank 320")])
def test_vllm_needs_a_flag_above_its_usual_rank(rank: int, note: str) -> None:
    found = {each.runtime: each for each in acceptances(AdapterFacts({"r": rank}, PLAIN, ()))}
    assert found["vLLM"].why == note
