"""Files of class names: which forms they may have, and what is taken for names in none of them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nullspace_unlearn.files import read_text

_FORMS = (
    "give one name a line (a WordNet number may stand before each), a CSV with a header, or JSON: "
    "a list of names, or an object of numbers to names"
)
_HEADER = set(
    "class classes classid classname classnames category id idx index label labels name names "
    "number synset wnid".split()
)
# Those of a column of names, the plainest first.
_NAMES = "classname classnames name names class classes category label labels".split()
# Words that a table may begin with, and no list of classes does.
_NO_CLASS = {"classid", "classname", "classnames", "classes", "labels", "names", "wnid"}


def read_class_list(path: str | Path) -> list[str]:
    """Read class names: one a line, a column of a CSV with a header, or JSON.

    JSON is a list of names, or an object of numbers to names. A WordNet number before each name, as
    CoOp and others keep ImageNet's, is passed over.

    Args:
        path: The file; `/dev/stdin` may be one.

    Returns:
        The names, in their order; in an object that of the numbers.

    Raises:
        ValueError: If it cannot be read, names nothing, or looks like something else than names;
            says which forms it may have.
    """
    text = read_text(path, stdin=True)
    try:
        names = _of_json(text) if text.lstrip()[:1] in ("[", "{") else _of_lines(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"class list {str(path)!r}: {error}; {_FORMS}") from None
    if not names:
        raise ValueError(f"class list {str(path)!r} names no classes")
    return names


def _of_json(text: str) -> list[str]:
    try:
        held: Any = json.loads(text)
    except ValueError as error:
        raise ValueError(f"it begins like JSON, and is none ({error})") from None
    if isinstance(held, dict):
        if all(isinstance(value, int) for value in held.values()):
            held = {str(number): name for name, number in held.items()}
        if not all(key.isdecimal() for key in held):
            raise ValueError("the keys of its object are no numbers")
        held = [held[key] for key in sorted(held, key=int)]
        # ImageNet's own has pairs of a WordNet number and a name.
        held = [one[1] if isinstance(one, list) and len(one) == 2 else one for one in held]
    if not all(isinstance(name, str) for name in held):
        raise ValueError("it holds more than names")
    return [" ".join(name.split()) for name in held]


def _of_lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and _is_header(lines[0]):
        return _of_table(lines)
    after = [re.fullmatch(r"n\d{8}\s+(\D.*)", line) for line in lines]
    if all(after):
        lines = [match[1] for match in after if match]
    for number, line in enumerate(lines, 1):
        if line[0] in "[]{}()<>\"'`":
            raise ValueError(f"line {number} begins with {line[0]}")
        if re.match(r"n\d{8}\b", line):
            raise ValueError(f"line {number} begins with a WordNet number: {line[:40]!r}")
        if "\t" in line:
            raise ValueError(f"line {number} has columns: {line[:40]!r}")
    if _numbered(lines, 0) or _numbered(lines, 1):
        raise ValueError(f"its lines are numbered: {lines[0][:40]!r}")
    return lines


def _of_table(lines: Sequence[str]) -> list[str]:
    """The column of names in a table whose first line names its columns."""
    between = next((mark for mark in ",;|" if mark in lines[0]), ",")
    head, *rows = csv.reader(lines, delimiter=between)
    columns = [_bare(column) for column in head]
    for number, row in enumerate(rows, 2):
        if len(row) != len(columns):
            raise ValueError(f"line {number} has {len(row)} columns, and its header {len(columns)}")
    for name in _NAMES:
        if columns.count(name) == 1:
            found = [row[columns.index(name)].strip() for row in rows]
            if all(found) and not (found and all(one.isdecimal() for one in found)):
                return found
    raise ValueError(f"no column of its header holds names: {lines[0][:40]!r}")


def _bare(column: str) -> str:
    return re.sub(r"[\W_]", "", column).casefold()


def _is_header(line: str) -> bool:
    columns = [_bare(column) for column in re.split(r"[,;|]", line)]
    return bool(set(columns) & (_HEADER if len(columns) > 1 else _NO_CLASS))


def _numbered(lines: Sequence[str], begin: int) -> bool:
    pairs = enumerate(lines, begin)
    return len(lines) > 1 and all(re.match(rf"{number}\b", line) for number, line in pairs)
