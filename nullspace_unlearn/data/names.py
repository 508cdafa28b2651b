"""From folder names to the words prompts use: one rule for every command."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

from nullspace_unlearn.spelling import listed

_NUMBER = re.compile(r"n\d{8}")
_NUMBERED = re.compile(r"^n\d{8}[-_ ](?=.)")
_PARTS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev"}
# Two small letters go before, lest McDonalds and iPhone be parted.
_CAMEL = re.compile(r"(?<=[a-z]{2})(?=[A-Z][a-z])")


@dataclass(frozen=True)
class Spoken:
    """Names as folders have them, and as prompts do.

    Attributes:
        words: `[names]` the words, in the names' order; two may be alike.
        said: A line about those that differ from their names, or nothing.
    """

    words: tuple[str, ...]
    said: tuple[str, ...] = ()


def spoken(what: str, names: Iterable[str], given: Mapping[str, str] | None = None) -> Spoken:
    """The words for some folders, class or domain.

    Underscores and camel case become blanks ("sedan_car", "AnnualCrop"), a WordNet number goes
    where a name follows ("n02085620-Chihuahua") and becomes its name where none does.

    Args:
        what: What the folders are, "class" or "domain".
        names: Their names.
        given: Folder -> word, where the user says it; others are passed over.

    Returns:
        The words.

    Raises:
        ValueError: If a class is a number that WordNet's ImageNet does not have.
    """
    names, given = tuple(names), given or {}
    words = tuple(given.get(name) or _word(what, name) for name in names)
    changed = [
        f"{n} as {w!r}" for n, w in zip(names, words, strict=True) if n != w and n not in given
    ]
    if not changed:
        return Spoken(words)
    more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
    plural = "classes" if what == "class" else "domains"
    return Spoken(words, (f"prompts speak of {plural} {', '.join(changed[:3])}{more}",))


def check_domains(root: Path, folders: Iterable[str]) -> None:
    """Refuse folders in the place of domains that are parts of one data set.

    Args:
        root: What they are in.
        folders: Their names.

    Raises:
        ValueError: If one is called train, test or the like; says what to name instead.
    """
    parts = sorted(name for name in folders if name.casefold() in _PARTS)
    if parts:
        raise ValueError(
            f"{listed(parts)} in {str(root)!r} {'are parts' if parts[1:] else 'is a part'} of the "
            f"data, not a domain: name one of them, such as {str(root / parts[0])!r}"
        )


def _word(what: str, name: str) -> str:
    if what == "class" and _NUMBER.fullmatch(name):
        known = _wordnet()
        if name not in known:
            raise ValueError(
                f"class folder {name!r} is a WordNet number that ImageNet does not have: say what "
                f"it is with --class-word {name}=WORD"
            )
        return known[name]
    plain = _NUMBERED.sub("", name) if what == "class" else name
    return " ".join(_CAMEL.sub(" ", plain.replace("_", " ")).split()) or name


@lru_cache(maxsize=1)
def _wordnet() -> Mapping[str, str]:
    """WordNet number -> name: open_clip's for ImageNet's 1,000, else the first of its lemmas."""
    from open_clip import IMAGENET_CLASSNAMES

    info = resources.files("timm.data") / "_info"
    lemmas = (info / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    named = {
        number: names.split(",")[0] for number, _, names in (x.partition("\t") for x in lemmas)
    }
    numbers = (info / "imagenet_synsets.txt").read_text(encoding="utf-8").split()
    return {**named, **dict(zip(numbers, IMAGENET_CLASSNAMES, strict=True))}
