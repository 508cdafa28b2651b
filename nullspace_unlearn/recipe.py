"""Recipes: several requests in a file, each with its own method and numbers, that make one edit.

The recipe.yaml of an output folder is such a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import reduce
from operator import matmul
from pathlib import Path
from typing import Any

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.edit import Edit, Side, Space
from nullspace_unlearn.erasers import METHODS
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.looks import Looks, Prototypes
from nullspace_unlearn.plans import Plan, plan
from nullspace_unlearn.strict import plain_yaml, read, yaml_place
from nullspace_unlearn.unlearn import erase
from nullspace_unlearn.words import CELL_TEMPLATES, CLASS_TEMPLATES

# What an edit says of itself beside what it was asked for.
_TOLD = (
    "parameter",
    "invertible",
    "noise",
    "paper",
    "same_to_the_model",
    "in_other_words",
    "side_of_prototypes",
    "near_synonyms_not_kept",
    "kept",
)


@dataclass(frozen=True)
class Templates:
    """Prompt templates, as a vocabulary.json holds them.

    Attributes:
        class_: For a class whatever its domain; "class" in the file.
        cell: For a class in a domain.
    """

    class_: tuple[str, ...] = CLASS_TEMPLATES
    cell: tuple[str, ...] = CELL_TEMPLATES


@dataclass(frozen=True)
class Entry:
    """One request of a recipe, and how it is to be met.

    Attributes:
        request: What to forget and what to keep.
        method: The eraser; absent: by the request.
        numbers: Some of the method's numbers, by name.
        strength: Scales the edit.
        side: The tower to change.
        space: What the edit reads; absent: by the method.
        classes: Names that stay, and those forgotten; absent: as for any request.
        domains: Domain key -> word in prompts; absent: as for any request.
        templates: Prompt templates; absent: the model's. Those of cells are always the model's.
        prototypes: What says how images of a cell look.
        wordings: Whether the names are to go in other words too; absent: as for any request.
    """

    request: Forget
    method: str | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    strength: float = 1.0
    side: Side = "visual"
    space: Space | None = None
    classes: tuple[str, ...] | None = None
    domains: Mapping[str, str] | None = None
    templates: Templates | None = None
    prototypes: Prototypes = "auto"
    wordings: bool | None = None

    def plan(self, clip: Clip, images: bool = False) -> Plan:
        """Resolve the request against a model; see `plans.plan`, of `images` too."""
        return plan(
            clip,
            self.request,
            classes=self.classes,
            domains=self.domains,
            templates=None if self.templates is None else self.templates.class_,
            method=self.method,
            side=self.side,
            images=images,
            wordings=self.wordings,
        )


@dataclass(frozen=True)
class EditRecipe:
    """Several requests, met one after another.

    Attributes:
        edits: The requests, first to last.
        model: What model they are for, in words.
        pretrained: Its tag or weights file, likewise.
        weights_sha256: Hash of the weights they are for; absent: any.
    """

    edits: tuple[Entry, ...]
    model: str | None = None
    pretrained: str | None = None
    weights_sha256: str | None = None

    def check_made_for(self, clip: Clip) -> None:
        """Refuse a model that the recipe is not for.

        Raises:
            ValueError: If its weights are others, or have been edited.
        """
        found = clip.source.sha256
        if self.weights_sha256 is not None and self.weights_sha256 != found:
            raise ValueError(
                f"the recipe is for {self.model or 'a model'} with weights of sha256 "
                f"{self.weights_sha256}, and those of {clip.source.name} are {found}"
            )

    def erase(self, clip: Clip, looks: Looks | None = None) -> Clip:
        """Meet the requests one after another; as `steps`, and the last model it leads to."""
        for step in self.steps(clip, looks):
            clip = step.edited
        return clip

    def steps(self, clip: Clip, looks: Looks | None = None) -> Iterator[Step]:
        """Meet the requests one after another.

        Args:
            clip: The model; it is not changed.
            looks: What prototypes are made of, where a request does not say.

        Yields:
            Each request as it was met; the history of the last model holds all of them.

        Raises:
            ValueError: If the recipe is for other weights, or a request cannot be met, which is
                named.
        """
        self.check_made_for(clip)
        for number, entry in enumerate(self.edits, 1):
            own = replace(looks or Looks(), space=entry.space)
            if entry.prototypes != "auto":
                own = replace(own, prototypes=entry.prototypes)
            try:
                plan = entry.plan(clip, own.shows)
                own = own.reading(clip, plan)
                edit = erase(
                    clip, plan, strength=entry.strength, numbers=entry.numbers, space=own.space,
                    visual=own.make(clip, plan),
                )  # fmt: skip
                clip = edit.fold(clip, plan.side)
            except ValueError as error:
                raise ValueError(f"request {number} of the recipe: {error}") from None
            yield Step(edit, plan.side, clip)


@dataclass(frozen=True, eq=False)
class Step:
    """A request of a recipe that was met.

    Attributes:
        edit: The edit that it became.
        side: The tower that it went to.
        edited: The model with it and those before it.
    """

    edit: Edit
    side: Side
    edited: Clip


def composed(steps: Sequence[Step]) -> Edit:
    """The one edit that the requests of a recipe add up to.

    Args:
        steps: As `EditRecipe.steps` gives them.

    Returns:
        The edit, for the tower of all of them.

    Raises:
        ValueError: If two of them change two weights.
    """
    first = steps[0]
    for number, step in enumerate(steps, 1):
        if (step.side, step.edit.space) != (first.side, first.edit.space):
            raise ValueError(
                f"one patch changes one weight: request {number} of the recipe is of the "
                f"{step.side} side and space {step.edit.space!r}, request 1 of the {first.side} "
                f"side and {first.edit.space!r}; make a patch of each, one on the other's folder"
            )
    return reduce(matmul, (step.edit for step in steps))


def read_recipe(path: str | Path) -> EditRecipe:
    """Read a recipe, a person's or that of an output folder.

    Args:
        path: The YAML file.

    Returns:
        The recipe.

    Raises:
        ValueError: Naming the file, the place in it and what is wrong; also where an edit was
            trained or made from images, which a recipe does not hold.
    """
    given = plain_yaml(path)
    try:
        if not isinstance(given, Mapping) or not isinstance(given.get("edits"), list):
            raise ValueError("it must hold a list of requests under 'edits'")
        if not given["edits"]:
            raise ValueError("edits: there is no request in it")
        entries = [_asked(edit, f"edits[{i}]") for i, edit in enumerate(given["edits"])]
        recipe: EditRecipe = read(EditRecipe, {**given, "edits": entries})
    except ValueError as error:
        place = re.match(r"edits[\w.\[\]]*(?=: )", str(error))
        where = f", {yaml_place(path, place[0])}" if place else ""
        raise ValueError(f"{path}{where}: {error}") from None
    return recipe


def _asked(edit: Any, where: str) -> Any:
    """An edit less what it tells of how it came out."""
    if not isinstance(edit, Mapping):
        return edit
    if edit.get("trained") or "composed" in edit:
        raise ValueError(f"{where}: it was trained or composed, which nsu erase does not do again")
    asked = {key: value for key, value in edit.items() if key not in _TOLD}
    kept, request = edit.get("kept"), edit.get("request")
    if "classes" not in asked and isinstance(kept, list) and isinstance(request, Mapping):
        asked["classes"] = [*kept, *(request.get("classes") or [])]
    method = METHODS.get(str(edit.get("method")))
    if method is not None and isinstance(asked.get("numbers"), Mapping):
        own = {one.name for one in fields(method.numbers)}
        numbers = {k: v for k, v in asked["numbers"].items() if k in own or k != "rank"}
        asked["numbers"] = numbers
    templates = asked.get("templates")
    if isinstance(templates, Mapping) and "class" in templates:
        rest = {key: value for key, value in templates.items() if key != "class"}
        asked["templates"] = {"class_": templates["class"], **rest}
    prototypes = asked.get("prototypes")
    if prototypes == "prompts":
        asked["prototypes"] = "text"
    elif isinstance(prototypes, Mapping):
        if "synthesis" not in prototypes:
            raise ValueError(f"{where}.prototypes: it was made from images, which are not in it")
        asked["prototypes"] = "pixels"
    return asked
