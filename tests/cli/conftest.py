"""A pipeline that does as it is told, in the place of the real one."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import saferestore.core
from report_cases import report
from saferestore.core.config import RestoreConfig


class Pipeline:
    """Remembers what it was called with and returns, or raises, what it was given."""

    def __init__(self) -> None:
        self.outcome: dict[str, Any] | BaseException = report()
        self.called: list[tuple[RestoreConfig, Path | None]] = []
        self.earlier: list[tuple[bool, bool]] = []

    def restore(self, config: RestoreConfig, out: Path, *, resume: bool, restart: bool,
                progress: Callable[[str, int, int], None]) -> Any:
        self.called.append((config, out))
        self.earlier.append((resume, restart))
        progress("stage", 1, 2)
        return self._finish()

    def plan(self, config: RestoreConfig) -> Any:
        self.called.append((config, None))
        return {"memory": {"peak_bytes": 2_000_000_000}, "rows": {"harmful": 64}, "files": ["a", "b"], "device": None,
                "warnings": [{"code": "W_NO_TASK_ROWS", "message": "none"}]}

    def _finish(self) -> Any:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    made = Pipeline()
    module = types.SimpleNamespace(restore=made.restore, plan=made.plan)
    monkeypatch.setitem(__import__("sys").modules, "saferestore.core.pipeline", module)
    monkeypatch.setattr(saferestore.core, "pipeline", module, raising=False)
    return made
