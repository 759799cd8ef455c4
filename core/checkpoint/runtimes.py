"""Which servers take an adapter as it is: what each reads of PEFT's settings, and what it refuses or gets wrong.

The rules are those of the loaders' own sources at the end of 2025: vLLM's `PEFTHelper`, llama.cpp's
`convert_lora_to_gguf.py`, text-generation-inference's `adapters/lora.py`, mlx-lm's `load_adapters`. They are read from
`adapter_config.json` and the names of the tensors; no server is run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ACCEPTS, REFUSES, CHANGES = "accepts", "refuses", "changes"
"""`changes`: it loads the adapter and computes something else with it."""

SERVED_TENSORS = (".lora_A.weight", ".lora_B.weight")


@dataclass(frozen=True)
class AdapterFacts:
    """What decides whether a server takes an adapter.

    Attributes:
        config: `adapter_config.json`.
        tensors: Names in the weight file.
        ranks: The rank of every module.
    """

    config: Mapping[str, Any]
    tensors: Sequence[str]
    ranks: Sequence[int]

    @property
    def other_tensors(self) -> list[str]:
        """Names that are no LoRA factor."""
        return sorted(name for name in self.tensors if not name.endswith(SERVED_TENSORS))

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max([int(self.config.get("r", 0)), *self.ranks])


Reason = Callable[[AdapterFacts], str | None]
"""Why a server refuses (or changes) an adapter; None where it does not."""


def _dora(facts: AdapterFacts) -> str | None:
    return "DoRA (use_dora)" if facts.config.get("use_dora") else None


def _saved(facts: AdapterFacts) -> str | None:
    saved = facts.config.get("modules_to_save")
    return f"modules_to_save: {', '.join(saved)}" if saved else None


def _bias(facts: AdapterFacts) -> str | None:
    if facts.config.get("lora_bias"):
        return "lora_bias"
    bias = facts.config.get("bias", "none")
    return f"bias: {bias}" if bias != "none" else None


def _other(facts: AdapterFacts) -> str | None:
    names = facts.other_tensors
    return f"{len(names)} tensors that are no LoRA factor, e.g. {names[0]}" if names else None


def _rslora(facts: AdapterFacts) -> str | None:
    return "rsLoRA is scaled by alpha / r instead of alpha / sqrt(r)" if facts.config.get("use_rslora") else None


def _patterns(facts: AdapterFacts) -> str | None:
    found = [name for name in ("rank_pattern", "alpha_pattern") if facts.config.get(name)]
    return f"{' and '.join(found)}: one r and one lora_alpha are read for all modules" if found else None


def _alpha_pattern(facts: AdapterFacts) -> str | None:
    return "alpha_pattern: one lora_alpha is read for all modules" if facts.config.get("alpha_pattern") else None


def _above(limit: int, name: str) -> Reason:
    return lambda facts: f"rank {facts.rank} is above {limit} ({name})" if facts.rank > limit else None


def _own_format(_: AdapterFacts) -> str | None:
    return "it reads its own format (adapters.safetensors): convert or merge the adapter"


@dataclass(frozen=True)
class Runtime:
    """A server's rules.

    Attributes:
        name: What it is called.
        refuses: Why it may refuse.
        changes: Why it may compute something else without a word.
        note: What to set where it accepts.
    """

    name: str
    refuses: tuple[Reason, ...]
    changes: tuple[Reason, ...]
    note: Callable[[AdapterFacts], str]


def _max_lora_rank(facts: AdapterFacts) -> str:
    sizes = (8, 16, 32, 64, 128, 256, 320, 512)
    return "" if facts.rank <= 16 else f"with --max-lora-rank {next((s for s in sizes if s >= facts.rank), 512)}"


def _nothing(_: AdapterFacts) -> str:
    return ""


RUNTIMES = (
    Runtime("PEFT", (), (), _nothing),
    Runtime("vLLM", (_dora, _saved, _bias, _other, _above(512, "the largest --max-lora-rank")), (_patterns,),
            _max_lora_rank),
    Runtime("llama.cpp", (_dora, _bias, _other), (_rslora, _alpha_pattern), lambda _: "after convert_lora_to_gguf.py"),
    Runtime("MLX", (_own_format,), (), _nothing),
    Runtime("TGI", (_dora, _saved, _other, _above(128, "its kernels")), (_patterns,), _nothing),
)


@dataclass(frozen=True)
class Acceptance:
    """What a server does with an adapter: `accepts`, `refuses` or `changes`, and why or how."""

    runtime: str
    verdict: str
    why: str


def acceptances(facts: AdapterFacts) -> list[Acceptance]:
    """Return what each server does with an adapter, PEFT first."""
    return [_acceptance(runtime, facts) for runtime in RUNTIMES]


def _acceptance(runtime: Runtime, facts: AdapterFacts) -> Acceptance:
    for verdict, reasons in ((REFUSES, runtime.refuses), (CHANGES, runtime.changes)):
        found = [why for reason in reasons if (why := reason(facts))]
        if found:
            return Acceptance(runtime.name, verdict, "; ".join(found))
    return Acceptance(runtime.name, ACCEPTS, runtime.note(facts))
