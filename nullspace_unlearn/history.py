"""`History`: what a model was made to forget, first to last. It is what recipe.yaml holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from nullspace_unlearn.forget import Forget
from nullspace_unlearn.words import CLASS_TEMPLATES, check_printable, same_name


@dataclass(frozen=True)
class History:
    """The edits that lead from a model as it was found to one as it is.

    A request joins those before it: what was forgotten stays forgotten, and is no name to keep.

    Attributes:
        model: What the model it began with is called; a local folder by its own name.
        pretrained: The tag or file name that belongs to it.
        weights_sha256: Hash of the weights file it began with.
        edits: What was done, one mapping of plain JSON values an edit: what the edit says of itself
            (`Edit.provenance`), the side it went to and the parameters it changed. Those made for a
            request hold it under "request".
    """

    model: str
    pretrained: str | None = None
    weights_sha256: str | None = None
    edits: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "edits", tuple(dict(edit) for edit in self.edits))
        for edit in self.edits:
            for one in _parts(edit):
                _request(one), _kept(one), _templates(one), _domain_words(one)

    @property
    def requests(self) -> tuple[Forget, ...]:
        """The requests that were met, first to last."""
        found = (_request(one) for edit in self.edits for one in _parts(edit))
        return tuple(request for request in found if request is not None)

    @property
    def names(self) -> tuple[str, ...]:
        """Names forgotten everywhere, aliases among them."""
        everywhere = (one for one in self.requests if one.paradigm == "global")
        return tuple(dict.fromkeys(name for one in everywhere for name in one.names))

    @property
    def domains(self) -> tuple[str, ...]:
        """Domains forgotten whole."""
        whole = (one for one in self.requests if one.paradigm == "domain")
        return tuple(dict.fromkeys(name for one in whole for name in one.domains))

    @property
    def kept(self) -> tuple[str, ...]:
        """Names that some request kept, those among them that a later one has forgotten."""
        parts = (one for edit in self.edits for one in _parts(edit))
        return tuple(dict.fromkeys(name for one in parts for name in _kept(one)))

    @property
    def templates(self) -> dict[str, tuple[str, ...]]:
        """For each name forgotten everywhere the class templates it was forgotten under."""
        found: dict[str, tuple[str, ...]] = {}
        for one in (part for edit in self.edits for part in _parts(edit)):
            request = _request(one)
            if request is not None and request.paradigm == "global":
                found |= dict.fromkeys(request.names, _templates(one))
        return found

    def forgotten(
        self, classes: Sequence[str], domains: Sequence[str]
    ) -> Bool[Tensor, "classes domains"]:
        """Which cells of a grid were forgotten, by any request.

        Args:
            classes: Class names, in the grid's row order; upper and lower case are one.
            domains: Domains by their keys or words, in its column order; any one column where
                domains play no part.

        Returns:
            `[classes, domains]`, true where a cell was forgotten. What a request names and the grid
            has not is left out.
        """
        mask = torch.zeros(len(classes), len(domains), dtype=torch.bool)
        for edit in self.edits:
            for one in _parts(edit):
                if (request := _request(one)) is not None:
                    mask |= _cells(request, _domain_words(one), classes, domains)
        return mask

    def then(self, edit: Mapping[str, Any]) -> History:
        """The history with one more edit.

        Args:
            edit: As in `edits`.

        Returns:
            The longer history.

        Raises:
            ValueError: If its request is malformed.
        """
        return replace(self, edits=(*self.edits, edit))

    def to_json(self) -> dict[str, Any]:
        """Plain values, which `from_json` reads back."""
        return {
            "model": self.model,
            "pretrained": self.pretrained,
            "weights_sha256": self.weights_sha256,
            "edits": [dict(edit) for edit in self.edits],
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> History:
        """Read a history, trusting nothing in it.

        Args:
            said: What `to_json` gave.

        Returns:
            The history.

        Raises:
            ValueError: If it is not one.
        """
        edits = said.get("edits")
        if not isinstance(edits, list) or not all(isinstance(edit, dict) for edit in edits):
            raise ValueError(f"edits must be a list of mappings, got {str(edits)[:60]!r}")
        words = {}
        for name in ("model", "pretrained", "weights_sha256"):
            value = said.get(name)
            if not isinstance(value, str | None):
                raise ValueError(f"{name} must be text, got {str(value)[:60]!r}")
            words[name] = value
        return cls(words["model"] or "", words["pretrained"], words["weights_sha256"], tuple(edits))


def _parts(edit: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The edits that one is composed of; itself where it is not."""
    parts = edit.get("composed")
    if not isinstance(parts, list):
        return [edit]
    return [one for part in parts if isinstance(part, Mapping) for one in _parts(part)]


def _request(edit: Mapping[str, Any]) -> Forget | None:
    """What an edit was asked for, if it was for a request."""
    said = edit.get("request")
    if said is None:
        return None
    try:
        lists = {name: said.get(name, []) for name in ("classes", "domains", "keep")}
        aliases = said.get("aliases", {})
        texts = [*lists.values(), *aliases.values()]
        if set(said) - {*lists, "aliases"} or not all(isinstance(value, list) for value in texts):
            raise TypeError("it takes lists under classes, domains, keep and aliases")
        return Forget(**lists, aliases=aliases)
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"request {str(said)[:60]!r} is malformed: {error}") from None


def _kept(edit: Mapping[str, Any]) -> tuple[str, ...]:
    return _texts("kept", edit.get("kept"))


def _templates(edit: Mapping[str, Any]) -> tuple[str, ...]:
    said = edit.get("templates") or {}
    if not isinstance(said, Mapping):
        raise ValueError(f"templates must be a mapping, got {str(said)[:60]!r}")
    return _texts("templates", said.get("class")) or CLASS_TEMPLATES


def _domain_words(edit: Mapping[str, Any]) -> Mapping[str, str]:
    said = edit.get("domains") or {}
    if not isinstance(said, Mapping) or not all(isinstance(word, str) for word in said.values()):
        raise ValueError(f"domains must be words by name, got {str(said)[:60]!r}")
    return said


def _texts(what: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{what} must be a list of texts, got {str(value)[:60]!r}")
    for one in value:
        check_printable(what, one)
    return tuple(value)


def _cells(
    request: Forget, words: Mapping[str, str], classes: Sequence[str], domains: Sequence[str]
) -> Bool[Tensor, "classes domains"]:
    names = {same_name(name) for name in request.names}
    keys = {word for key in request.domains for word in (key, words.get(key, key))}
    named = [not names or same_name(name) in names for name in classes]
    rows = torch.tensor(named, dtype=torch.bool)
    columns = torch.tensor([not keys or one in keys for one in domains], dtype=torch.bool)
    return rows.reshape(-1, 1) & columns.reshape(1, -1)
