"""YAML as people write it: plain values, and no key given twice."""

from __future__ import annotations

from typing import Any

import yaml


def load_yaml(text: str) -> Any:
    """Return what a YAML document says.

    Args:
        text: Of the file. Nothing but plain values is made of it.

    Returns:
        Mappings, lists and plain values.

    Raises:
        yaml.YAMLError: No YAML, a value that is none (the 45th of a month), or a key that stands twice in one mapping:
            of two, as where the dash of a list's entry is missing, the last would win without a word.
        RecursionError: Nested too deep.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (ValueError, KeyError) as error:  # numbers, dates and truths are read by Python's own functions
        raise yaml.YAMLError(f"no such value: {error}") from error


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        """Look at the keys as they are written: later, those that `<<` takes over stand among them."""
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(problem=f"`{twice}` is given twice", problem_mark=node.start_mark)
        return node
