"""What the shell completes: models, methods, classes. No torch, which would take seconds."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from nullspace_unlearn.trained import listed

_PACKAGE = Path(__file__).parents[1]
_BUNDLED = "nsu-mini"


def models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of open_clip, the bundled model, and folders."""
    names = [_BUNDLED, *_open_clip()]
    return [*_begin(names, incomplete), CompletionItem(incomplete, type="dir")]


def classes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The model folder's own classes; those of the bundled model where none is named."""
    return _begin(_vocabulary(ctx).get("classes", ()), incomplete)


def domains(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The model folder's own domains."""
    return _begin(_vocabulary(ctx).get("domains", ()), incomplete)


def closed_methods() -> tuple[str, ...]:
    """Names of the methods in closed form: what each file of `erasers/` calls its `METHOD`."""
    found = []
    for file in sorted((_PACKAGE / "erasers").glob("*.py")):
        for line in ast.parse(file.read_text(encoding="utf-8")).body:
            value = getattr(line, "value", None)
            named = isinstance(line, ast.Assign) and getattr(line.targets[0], "id", "") == "METHOD"
            if named and isinstance(value, ast.Call):
                found += [k.value.value for k in value.keywords
                          if k.arg == "name" and isinstance(k.value, ast.Constant)]  # fmt: skip
    return tuple(map(str, found))


def methods(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the methods in closed form."""
    return _begin(closed_methods(), incomplete)


def _begin(names: Iterable[object], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in map(str, names) if name.startswith(incomplete)]


def _open_clip() -> list[str]:
    package = find_spec("open_clip")
    folders = package.submodule_search_locations if package else None
    files = [file for folder in folders or () for file in Path(folder).glob("model_configs/*.json")]
    return sorted(file.stem for file in files)


def _vocabulary(ctx: click.Context) -> dict[str, list[str]]:
    model = str(ctx.params.get("model") or _BUNDLED).removeprefix("local-dir:")
    folder = _PACKAGE / "data/mini/model" if model == _BUNDLED else Path(model)
    try:
        from nullspace_unlearn.files import read_json

        said = read_json(folder / "vocabulary.json")
        return {name: list(said[name]) for name in ("classes", "domains")}
    except (ValueError, KeyError, TypeError):  # completion has nobody to tell
        return {}


def trained(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of the methods that train."""
    return _begin(listed(), incomplete)
