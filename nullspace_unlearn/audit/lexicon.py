"""Other words for a name, from WordNet where it is installed, and from small rules."""

from __future__ import annotations

import importlib.util
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

EXTRA = "pip install 'nullspace-unlearn[wordnet]', then python -m wn download oewn:2024 omw:1.4"
"""What brings synonyms, narrower and wider words, other languages and plurals."""

_MOST = 12  # words of a kind
_SENSES = 1  # of a name; the first is the commonest


def related(name: str, lexicon: Any = None) -> Mapping[str, tuple[str, ...]]:
    """Words that WordNet relates to a name, in its commonest sense as a common noun.

    Args:
        name: The name.
        lexicon: The module `wn`, or what has its `synsets`; imported if None.

    Returns:
        "synonym", "narrower" (hyponyms), "wider" (hypernyms), "other language" and "plural"; a kind
        that has none, or no lexicon, is left out.
    """
    found: dict[str, list[str]] = {}
    if lexicon is None and importlib.util.find_spec("wn") is not None:
        import wn as lexicon
    for sense in _synsets(lexicon, name):
        found.setdefault("synonym", []).extend(sense.lemmas())
        for kind, near in (("narrower", sense.hyponyms()), ("wider", sense.hypernyms())):
            for one in near:
                found.setdefault(kind, []).extend(one.lemmas())
        for other in _translated(lexicon, sense):
            found.setdefault("other language", []).extend(other.lemmas()[:1])
    if importlib.util.find_spec("inflect") is not None:
        import inflect

        many = inflect.engine().plural_noun(name)
        if many:
            found["plural"] = [str(many)]
    told = {kind: _plain(name, words)[:_MOST] for kind, words in found.items()}
    return {kind: words for kind, words in told.items() if words}


def misspelt(name: str, generator: torch.Generator, most: int = 8) -> tuple[str, ...]:
    """Spellings one letter away: one left out, doubled, replaced, or two changed over.

    Args:
        name: The name.
        generator: Draws which.
        most: How many.

    Returns:
        Different spellings, none the name itself.
    """

    def drawn(below: int) -> int:
        return int(torch.randint(below, (), generator=generator))

    found: list[str] = []
    letters = [i for i, c in enumerate(name) if c.isalpha()]
    for _ in range(8 * most if letters else 0):
        i = letters[drawn(len(letters))]
        before, letter, behind = name[:i], name[i], name[i + 1 :]
        other = string.ascii_lowercase[drawn(26)]
        kinds = (before + behind, before + 2 * letter + behind, before + other + behind,
                 before + behind[:1] + letter + behind[1:])  # fmt: skip
        word = kinds[drawn(len(kinds))]
        if word.strip() and word != name and word not in found:
            found.append(word)
    return tuple(found[:most])


def _synsets(lexicon: Any, name: str) -> Sequence[Any]:
    """The commonest senses of a name; none where nothing is installed or downloaded.

    Senses that are somebody or some place are left out: a class called crane is not Stephen Crane.
    """
    if lexicon is None:
        return ()
    try:
        senses = lexicon.synsets(name, pos="n", lang="en")
        return [one for one in senses if not one.relations("instance_hypernym")][:_SENSES]
    except Exception:  # no lexicon of that language was downloaded
        return ()


def _translated(lexicon: Any, sense: Any) -> list[Any]:
    """The sense in every other language that is there."""
    others = sorted({one.language for one in lexicon.lexicons()} - {"en"})
    found: list[Any] = []
    for language in others:
        found += sense.translate(lang=language)[:1]
    return found


def _plain(name: str, words: Iterable[str]) -> tuple[str, ...]:
    """Words as prompts have them, each once, without the name itself."""
    said = [" ".join(str(word).replace("_", " ").split()) for word in words]
    return tuple(dict.fromkeys(w for w in said if w and w.casefold() != name.casefold()))
