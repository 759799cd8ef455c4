"""Settings of methods: names, what goes with what, and what is refused because it would not be read."""

from __future__ import annotations

from typing import Any

import pytest
from saferestore.core.config import ENGINES, OBJECTIVES, PAIRS, RestoreConfig
from saferestore.core.errors import UsageError


def made(**more: Any) -> RestoreConfig:
    return RestoreConfig("b", "t", **more)


def test_the_default_is_our_own_steps_with_their_objective_and_engine() -> None:
    assert made().method == "curvature" and made(engine="cg", objective="match").resolved().engine == "cg"


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_is_an_objective_and_an_engine(name: str) -> None:
    found = made(method=name).resolved()
    assert f"{found.objective}-{found.engine}" == name
    assert found.objective in OBJECTIVES and found.engine in ENGINES
    assert found.resolved() == found


@pytest.mark.parametrize(("name", "hint"), [("refusal-stf", "refusal-sft"), ("safe-lora", "safelora"),
                                            ("anchor-fischer", "anchor-fisher"), ("zzz", "one of: anchor-cg")])
def test_an_unknown_method_is_refused_with_the_nearest_name(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"--method {name}") as caught:
        made(method=name)
    assert hint in caught.value.hint


@pytest.mark.parametrize(("more", "flag"), [
    ({"method": "npo", "engine": "cg"}, "--engine cg"), ({"method": "npo", "objective": "match"}, "--objective match"),
    ({"method": "anchor-cg", "engine": "diagonal"}, "--engine diagonal"), ({"strength": 0.5}, "--strength 0.5"),
    ({"method": "anchor-cg", "strength": 0.5}, "--strength 0.5"), ({"method": "scale", "strength": -1.0}, "--strength"),
    ({"method": "scale", "strength": float("nan")}, "--strength"), ({"unaligned": "x"}, "--unaligned x"),
    ({"method": "scale", "unaligned": "x"}, "--unaligned x"), ({"method": "safelora"}, "--unaligned"),
    ({"method": "resta"}, "--unaligned"),
])
def test_a_setting_that_would_not_be_read_or_is_missing_is_refused_by_name(more: dict[str, Any], flag: str) -> None:
    with pytest.raises(UsageError) as caught:
        made(**more)
    assert flag in caught.value.what and caught.value.hint


def test_settings_that_belong_together_are_taken() -> None:
    assert made(method="safelora", unaligned="u", strength=0.3).strength == 0.3
    assert made(method="anchor-cg", engine="cg").engine == "cg"
