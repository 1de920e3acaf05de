"""YAML in which a key that is there twice, or a reference to another place, is an error; PyYAML takes the last key."""

from __future__ import annotations

from typing import Any


def parse_yaml(text: str) -> Any:
    """Plain values of `text`.

    Raises:
        yaml.YAMLError: It is no YAML, names a key twice or refers to other places of itself, by which a few lines can
            stand for gigabytes.
        ValueError: A date or number in it is none.
        RecursionError: Nested too deeply.
    """
    import yaml

    _check(yaml.compose(text, Loader=yaml.SafeLoader), set())
    return yaml.safe_load(text)


def _check(node: Any, seen: set[int]) -> None:
    """Raise yaml.YAMLError where a node of the tree is there twice, or a key of a mapping."""
    import yaml

    if node is None:
        return
    if id(node) in seen:
        raise yaml.YAMLError("an alias (*name) stands for another place: write that out")
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        names = [str(key.value) for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise yaml.YAMLError(f"the key {name!r} is there twice")
        children = [part for pair in node.value for part in pair]
    else:
        children = node.value if isinstance(node, yaml.SequenceNode) else []
    for child in children:
        _check(child, seen)
