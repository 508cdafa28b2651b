"""YAML as plain values, or into frozen dataclasses that refuse what they do not know."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from nullspace_unlearn.files import read_text
from nullspace_unlearn.spelling import instead

_T = TypeVar("_T")


def read_yaml(kind: type[_T], path: str | Path) -> _T:
    """Read a file into a dataclass, its fields by their types.

    Fields may be text, numbers, truth values, literals, tuples of one type, mappings from text,
    dataclasses, and unions; in a union of dataclasses the key `kind` says which, by their class
    attribute of that name.

    Args:
        kind: The dataclass.
        path: The file.

    Returns:
        The dataclass.

    Raises:
        ValueError: Naming the file, the place in it, what is wrong and what is allowed.
    """
    given = plain_yaml(path)
    try:
        made: _T = read(kind, given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return made


def plain_yaml(path: str | Path) -> Any:
    """Read a file of plain values.

    Args:
        path: The file.

    Returns:
        Mappings, lists, text, numbers, truth values, None.

    Raises:
        ValueError: If it cannot be read or is no such YAML: a key given twice, an alias, which can
            make gigabytes of a few bytes, a type of its own.
    """
    try:
        return yaml.load(read_text(path), _PlainLoader)
    except RecursionError:
        raise ValueError(f"{str(path)!r} cannot be read: it is nested too deep") from None
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{str(path)!r} cannot be read: {said}") from None


def yaml_place(path: str | Path, place: str) -> str:
    """Where in a file a value stands.

    Args:
        path: A file that `plain_yaml` reads.
        place: The value's place as `read` names it, such as "edits[0].numbers.depth".

    Returns:
        "line 4, column 12", both from 1: of the value, or of the innermost around it that is there.
    """
    node: Any = yaml.compose(read_text(path), _PlainLoader)
    for step in re.findall(r"[^.\[\]]+", place):
        if isinstance(node, yaml.MappingNode):
            found = next((value for key, value in node.value if key.value == step), None)
        elif isinstance(node, yaml.SequenceNode) and step.isdecimal():
            found = node.value[int(step)] if int(step) < len(node.value) else None
        else:
            found = None
        if found is None:
            break
        node = found
    return f"line {node.start_mark.line + 1}, column {node.start_mark.column + 1}"


def yaml_text(value: Any) -> str:
    """Plain values as YAML that `plain_yaml` reads back.

    Args:
        value: The values.

    Returns:
        The text, in the order of the mappings.

    Raises:
        ValueError: If there is more than plain values in it.
    """
    try:
        return yaml.dump(value, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)
    except yaml.YAMLError as error:
        raise ValueError(f"no plain value: {' '.join(str(error).split())}") from None


class _PlainDumper(yaml.SafeDumper):
    """YAML that writes equal lists out again in place of an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, and without the last of two equal keys winning in silence."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(
                None, None, f"alias {event.anchor!r} is refused: write it out", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read(kind: Any, given: Any, where: str = "") -> Any:
    """A dataclass from a mapping, its fields by their types; see `read_yaml`.

    Args:
        kind: The dataclass.
        given: Plain values.
        where: The place that messages begin with.

    Returns:
        The dataclass.

    Raises:
        ValueError: Naming the place, what is wrong and what is allowed.
    """
    here = f"{where}: " if where else ""
    own = {one.name: one for one in fields(kind)}
    if not isinstance(given, Mapping):
        raise ValueError(f"{here}expected keys among {', '.join(own)}, got {given!r}")
    for key in given:
        if key not in own:
            raise ValueError(f"{here}unknown key {str(key)!r}; {instead(str(key), own)}")
    for name, one in own.items():
        if name not in given and one.default is MISSING and one.default_factory is MISSING:
            raise ValueError(f"{here}the key {name!r} is missing")
    hints = typing.get_type_hints(kind)
    values = {
        key: _value(hints[key], value, f"{where}.{key}" if where else key)
        for key, value in given.items()
    }
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{here}{error}") from None


def _value(hint: Any, given: Any, where: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint):
        return read(hint, given, where)
    if origin in (typing.Union, types.UnionType):
        if all(is_dataclass(one) and hasattr(one, "kind") for one in inner):
            return _one_of({one.kind: one for one in inner}, given, where)
        return _either(inner, given, where)
    if origin is Literal:
        if given not in inner:
            raise ValueError(f"{where}: {given!r} is not known; {instead(str(given), inner)}")
        return given
    if origin is tuple:
        if not isinstance(given, list):
            raise ValueError(f"{where}: expected a list, got {given!r}")
        return tuple(_value(inner[0], one, f"{where}[{i}]") for i, one in enumerate(given))
    if origin is not None:  # a mapping
        if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
            raise ValueError(f"{where}: expected words and their values, got {given!r}")
        return {key: _value(inner[1], one, f"{where}.{key}") for key, one in given.items()}
    if hint is float and isinstance(given, int) and not isinstance(given, bool):
        return float(given)
    if not isinstance(given, hint) or (hint is int and isinstance(given, bool)):
        what = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
        raise ValueError(f"{where}: expected {what[hint]}, got {given!r}")
    return given


def _either(inner: tuple[Any, ...], given: Any, where: str) -> Any:
    refused = []
    for one in inner:
        if one is type(None):
            if given is None:
                return None
            continue
        try:
            return _value(one, given, where)
        except ValueError as error:
            refused.append(str(error).removeprefix(f"{where}: "))
    raise ValueError(f"{where}: {', or '.join(refused)}")


def _one_of(kinds: Mapping[str, Any], given: Any, where: str) -> Any:
    """The dataclass whose kind is given."""
    if not isinstance(given, Mapping) or "kind" not in given:
        raise ValueError(f"{where}: the key 'kind' is missing; it is one of {', '.join(kinds)}")
    kind = str(given["kind"])
    if kind not in kinds:
        raise ValueError(f"{where}.kind: {kind!r} is not known; {instead(kind, kinds)}")
    return read(kinds[kind], {k: v for k, v in given.items() if k != "kind"}, where)
