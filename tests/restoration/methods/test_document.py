"""docs/methods.md has the table that the program has."""

from __future__ import annotations

from pathlib import Path

from saferestore.core.restoration.methods.table import METHODS

PAGE = (Path(__file__).parents[3] / "docs" / "methods.md").read_text(encoding="utf-8")


def row_of(name: str) -> str:
    method = METHODS[name]
    knob = f"{method.knob.name}, {method.knob.weakest:g} to {method.knob.strongest:g}"
    tried = f"; tries {', '.join(f'{value:g}' for value in method.knob.tried)}" if method.knob.tried else ""
    return (f"| `{name}` | {method.about} | {method.source} | {', '.join(method.needs) or '-'} | {knob}{tried} | "
            f"{method.differs} |")


def test_the_page_has_every_method_as_the_table_has_it() -> None:
    found = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert found == [row_of(name) for name in METHODS]
