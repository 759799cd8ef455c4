"""What a method may need beyond two checkpoints, and what is said where it is not there."""

from __future__ import annotations

from collections.abc import Callable

from ...errors import UsageError
from .inputs import Inputs

Check = Callable[[Inputs], bool]

REQUIREMENTS: dict[str, tuple[Check, str, str]] = {
    "harmful": (lambda inputs: bool(inputs.data.harmful), "no harmful answer: the tuned model refuses every fit prompt",
                "give harmful answers with --harmful FILE, or use --method refusal-sft"),
    "unaligned": (lambda inputs: inputs.unaligned is not None, "no unaligned model to take the safety direction from",
                  "give the model that BASE was before alignment: --unaligned REF"),
    "adapter": (lambda inputs: inputs.pair.kind == "lora", "works on an adapter, and TUNED is a full checkpoint",
                "use --method curvature, refusal-sft or scale"),
}
"""Name -> (is it there, what is missing, the way out)."""


def check(name: str, needs: tuple[str, ...], inputs: Inputs) -> None:
    """Refuse a method whose requirements are not met.

    Raises:
        UsageError: The first that is missing.
    """
    for need in needs:
        is_there, missing, hint = REQUIREMENTS[need]
        if not is_there(inputs):
            raise UsageError(f"{missing} - --method {name}", hint=hint)
