"""A run's folder, told by what lies in it, and read as plain values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nullspace_unlearn.audit.run import RESULT
from nullspace_unlearn.clip.hugging_face import layout_of
from nullspace_unlearn.clip.source import ADAPTER_NAME, RECIPE_NAME, REPORT_NAME
from nullspace_unlearn.files import read_text
from nullspace_unlearn.report.prototypes import FACTS, SHEET
from nullspace_unlearn.report.sweep import SUMMARY
from nullspace_unlearn.spelling import printable
from nullspace_unlearn.strict import plain_yaml

Kind = Literal["edited", "audit", "sweep", "bench", "pictures"]

_TOLD_BY: dict[Kind, tuple[str, ...]] = {
    "audit": (RESULT,),
    "bench": ("table.json", RECIPE_NAME),
    "sweep": (SUMMARY, RECIPE_NAME),
    "pictures": (FACTS, SHEET),
}
_WHAT = "a folder of nsu erase or train, an audit, a sweep, a bench, or prototypes"


@dataclass(frozen=True)
class Run:
    """What a run wrote.

    Attributes:
        kind: What wrote it.
        folder: Where.
        said: The plain values of each of its files, by name; text as `printable` spells it.
    """

    kind: Kind
    folder: Path
    said: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder's own name."""
        return printable(self.folder.resolve().name)


def read_run(path: str | Path) -> Run:
    """Read what a run wrote.

    Args:
        path: Its folder, or its audit.json.

    Returns:
        The run.

    Raises:
        ValueError: If it is no run's, or a file in it is malformed.
    """
    folder = Path(path)
    if folder.name == "audit.json" and folder.is_file():
        folder = folder.parent
    if not folder.is_dir():
        raise ValueError(f"{str(path)!r} is no run: it must be {_WHAT}")
    for kind, files in _TOLD_BY.items():
        if all((folder / name).is_file() for name in files):
            texts = [name for name in files if not name.endswith(".png")]
            return Run(kind, folder, {name: _read(folder / name) for name in texts})
    if (folder / ADAPTER_NAME).is_file() or layout_of(folder) is not None:
        names = [name for name in (RECIPE_NAME, REPORT_NAME) if (folder / name).is_file()]
        if not names:
            raise ValueError(f"{str(path)!r} is a model that nothing was done to: no {RECIPE_NAME}")
        return Run("edited", folder, {name: _read(folder / name) for name in names})
    raise ValueError(f"{str(path)!r} is no run: it must be {_WHAT}, and hold what that wrote")


def _read(file: Path) -> Any:
    if file.suffix == ".yaml":
        found = plain_yaml(file)
    else:
        text = read_text(file)
        try:
            found = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{str(file)!r} is malformed: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{str(file)!r} is malformed: it holds no mapping")
    return _plain(found)


def _refuse(constant: str) -> Any:
    raise ValueError(f"it holds {constant}, which is no number")


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {printable(str(key)): _plain(one) for key, one in value.items()}
    return value
