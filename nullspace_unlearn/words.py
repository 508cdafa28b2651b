"""The words a model folder carries: class names, domain words, templates and aliases."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from nullspace_unlearn.files import read_json
from nullspace_unlearn.spelling import printable

FILE_NAME = "vocabulary.json"

CLASS_TEMPLATES = ("a photo of a {class}.", "a picture of a {class}.", "an image of a {class}.")
"""Templates for a class whatever its domain, where the model folder carries none."""

CELL_TEMPLATES = ("a {domain} of a {class}.", "{domain} of a {class}.", "a {class}, {domain}.")
"""Templates for a class in a domain, where the model folder carries none."""

_CLASS = {"": "class", "c": "class"}  # as CLIP's own templates and CLIP_benchmark's have it


@dataclass(frozen=True)
class Words:
    """Names and templates that prompts are made from.

    Attributes:
        classes: Names of the retained vocabulary. Two classes may be of one name, as ImageNet's
            missiles are: what is said of the name is said of both.
        domains: Folder name of each domain -> the word prompts use for it.
        class_templates: Strings holding `{class}` (or a bare `{}`) once.
        cell_templates: Strings holding `{class}` and `{domain}` once.
        aliases: Class name -> other names that mean it.
    """

    classes: tuple[str, ...] = ()
    domains: Mapping[str, str] = field(default_factory=dict)
    class_templates: tuple[str, ...] = CLASS_TEMPLATES
    cell_templates: tuple[str, ...] = CELL_TEMPLATES
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "domains", MappingProxyType(dict(self.domains)))
        aliases = {name: tuple(others) for name, others in self.aliases.items()}
        object.__setattr__(self, "aliases", MappingProxyType(aliases))
        check_names("class", tuple(dict.fromkeys(self.classes)))
        check_names("domain", tuple(self.domains))
        object.__setattr__(
            self,
            "class_templates",
            tuple(check_template(t, ("class",)) for t in self.class_templates),
        )
        object.__setattr__(
            self,
            "cell_templates",
            tuple(check_template(t, ("class", "domain")) for t in self.cell_templates),
        )

    def to_json(self) -> dict[str, Any]:
        """The contents of a vocabulary.json that `read_words` reads back to an equal object."""
        return {
            "classes": list(self.classes),
            "domains": dict(self.domains),
            "templates": {"class": list(self.class_templates), "cell": list(self.cell_templates)},
            "aliases": {name: list(others) for name, others in self.aliases.items()},
        }


def same_name(name: str) -> str:
    """What two spellings of one name have in common: Unicode form, width, case and blanks aside.

    Args:
        name: A class or domain.

    Returns:
        A text that is equal where the names are one.
    """
    folded = unicodedata.normalize("NFKC", name).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def check_names(what: str, names: tuple[str, ...]) -> None:
    """Refuse names that are empty, unprintable or given twice, also in two spellings (`same_name`).

    Args:
        what: What the names name, for the message: "class", "domain".
        names: The names.

    Raises:
        ValueError: Naming the offender.
    """
    seen: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"empty {what} name: {name!r}")
        check_printable(what, name)
        key = same_name(name)
        if key in seen:
            raise ValueError(f"{what} named twice: {seen[key]!r} and {name!r}")
        seen[key] = name


def check_printable(what: str, name: str) -> None:
    """Refuse a name that would steer a terminal or break a line of a table.

    Args:
        what: What it names, for the message.
        name: The name.

    Raises:
        ValueError: Showing it.
    """
    if printable(name) != name:
        raise ValueError(f"{what} name {name!r} holds control characters")


def check_template(template: str, fields: tuple[str, ...]) -> str:
    """Check a template's fields and return it with a bare `{}`, or `{c}`, spelled `{class}`.

    Args:
        template: For instance "a photo of a {}." or "a {domain} of a {class}.".
        fields: The fields it must hold, each exactly once.

    Returns:
        The template with named fields.

    Raises:
        ValueError: If the fields differ; says what was given and what is allowed.
    """
    allowed = " and ".join("{" + name + "}" for name in fields)
    try:
        parts = list(string.Formatter().parse(template))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"template {template!r} is malformed ({error}); it takes {allowed}"
        ) from None
    found = [_CLASS.get(name, name) for _, name, _, _ in parts if name is not None]
    if sorted(found) != sorted(fields) or any(spec or conv for _, _, spec, conv in parts):
        raise ValueError(f"template {template!r} must hold {allowed}, each once and nothing else")
    return "".join(
        text.replace("{", "{{").replace("}", "}}")
        + ("" if name is None else "{" + _CLASS.get(name, name) + "}")
        for text, name, _, _ in parts
    )


def read_words(path: Path) -> Words:
    """Read a vocabulary.json, trusting nothing in it.

    Args:
        path: The file.

    Returns:
        The words.

    Raises:
        ValueError: If the file is not JSON, or not of the expected shape.
    """
    try:
        data = read_json(path)
        templates = data.get("templates", {})
        return Words(
            classes=_strings(data["classes"]),
            domains=_string_map(data.get("domains", {})),
            class_templates=_strings(templates.get("class", CLASS_TEMPLATES)),
            cell_templates=_strings(templates.get("cell", CELL_TEMPLATES)),
            aliases={str(k): _strings(v) for k, v in data.get("aliases", {}).items()},
        )
    except (OSError, UnicodeDecodeError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a vocabulary file: {error}") from None


def _strings(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"expected a list of strings, got {value!r}")
    return tuple(value)


def _string_map(value: Any) -> dict[str, str]:
    if not all(isinstance(k, str) and isinstance(v, str) for k, v in value.items()):
        raise ValueError(f"expected strings mapped to strings, got {value!r}")
    return dict(value)
