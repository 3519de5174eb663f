"""YAML as this package reads and writes it: one dialect for profiles, trainings and lists.

It is YAML 1.2 with decimal numbers only: ``1e-4`` is a number, ``no`` and ``2024-01-01`` are text. No key stands twice.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from common.errors import UsageError

_PLAIN = {
    "null": r"null|Null|NULL|~|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(0|[1-9][0-9]*)",
    "float": r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?",
}


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = []
        for place, _ in node.value:
            key = self.construct_object(place, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", place.start_mark)
            seen.append(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    pass


for _class in (_Loader, _Dumper):
    _class.yaml_implicit_resolvers = {}
    for _tag, _pattern in _PLAIN.items():
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), None)


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file.

    Raises:
        UsageError: it cannot be read, in one line with file, line and what is wrong.
    """
    try:
        return parse_yaml(Path(path).read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def parse_yaml(text: str, where: str) -> Any:
    """The content of ``text``, which comes from ``where``; errors as in :func:`read_yaml`.

    >>> parse_yaml("{lr: 1e-4, mixed_precision: no, seeds: [0, 1]}", "an example")
    {'lr': 0.0001, 'mixed_precision': 'no', 'seeds': [0, 1]}
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f"line {mark.line + 1}: "
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UsageError(f"{where!r} is not readable as YAML: {line}{reason}") from error


def to_yaml(value: Any) -> str:
    """``value`` as text that :func:`parse_yaml` reads."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=True)
