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
        yaml.YAMLError: No YAML, or a key that stands twice in one mapping: of two, as where the dash of a list's entry
            is missing, the last would win without a word.
        RecursionError: Nested too deep.
    """
    return yaml.load(text, Loader=_Loader)


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        keys = [key.value for key, _ in node.value]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(problem=f"`{twice}` is given twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)
