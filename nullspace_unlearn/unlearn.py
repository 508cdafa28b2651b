"""From a plan to an edit, and to the proof that it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nullspace_unlearn import certificate
from nullspace_unlearn.certificate import Certificate
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.edit import DEEPER, Edit, Side, Space
from nullspace_unlearn.erasers import METHODS
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.plans import Plan, given_for, plan, space_for
from nullspace_unlearn.prototypes import Visual, class_prototypes

MAX_STRENGTH = 2.0


def erase(
    clip: Clip,
    request: Forget | Plan,
    *,
    classes: Sequence[str] | None = None,
    domains: Mapping[str, str] | None = None,
    templates: Sequence[str] | None = None,
    method: str | None = None,
    side: Side = "visual",
    space: Space | None = None,
    strength: float = 1.0,
    numbers: Mapping[str, Any] | None = None,
    visual: Visual | None = None,
    wordings: bool | None = None,
) -> Edit:
    """Make the edit that forgets what is asked: prompts, prototypes, eraser.

    Args:
        clip: The model; it is not changed (see `Edit.fold`).
        request: What to forget, or a plan made from it; a plan has settled all of the next five
            and wordings.
        classes: As for `plan`.
        domains: As for `plan`.
        templates: As for `plan`.
        method: As for `plan`.
        side: As for `plan`.
        space: What the edit reads: the "embedding", the "hidden" feature that enters the final
            projection, or one step deeper what enters the last MLP's output layer, "mlp", or an
            attention pool's value projection, "value"; of those that the method can
            read (`Method.spaces`). Absent: the first that the model has.
        strength: Scales the edit; 1 is the edit as derived, at most 2.
        numbers: Some of the method's numbers by name (`Method.numbers`) in place of its own.
        visual: What images of each cell look like to the model, for the methods that take it
            (`Method.images`); from `looks.Looks`, or `prototypes.from_images`. Absent: text
            alone, and a default method that makes do with it.
        wordings: As for `plan`.

    Returns:
        An edit, float64 on the CPU; its provenance tells how it came to be.

    Raises:
        ValueError: If the request cannot be met; see `plan` and the erasers.
    """
    if not 0 < strength <= MAX_STRENGTH:
        raise ValueError(f"strength must lie in (0, {MAX_STRENGTH:g}], got {strength}")
    if isinstance(request, Plan):
        settled = {"classes": classes, "domains": domains, "templates": templates, "method": method,
                   "wordings": wordings}  # fmt: skip
        if given := [name for name, value in settled.items() if value is not None]:
            raise ValueError(f"a plan is already made; {', '.join(given)} go to plan()")
        made = request
    else:
        made = plan(
            clip, request, classes=classes, domains=domains, templates=templates,
            method=method, side=side, images=visual is not None, wordings=wordings,
        )  # fmt: skip
    space = space_for(clip, made, space)
    _check_images(made, visual, space)
    edit = METHODS[made.method].edit(given_for(clip, made, visual, space), numbers)
    read, write = edit.read, edit.write
    if space in DEEPER:
        write = clip.inner(space).carry_back(write)
    provenance = {
        **edit.provenance,
        "strength": strength,
        "request": made.forget.to_json(),
        "kept": list(made.keep),
        "near_synonyms_not_kept": list(made.synonyms),
        "domains": dict(made.words.domains),
        "templates": made.words.to_json()["templates"],
        "prototypes": "prompts" if visual is None else visual.provenance,
        "space": space,
        "wordings": made.wordings,
    }
    made_edit = Edit(read, write, space, provenance)
    return made_edit if strength == 1 else made_edit.scale(strength)


def _check_images(made: Plan, visual: Visual | None, space: Space) -> None:
    method = METHODS[made.method]
    if visual is not None and method.images == "none":
        able = [name for name, other in METHODS.items() if other.images != "none"]
        raise ValueError(
            f"method {made.method!r} takes no visual prototypes; those that do: {', '.join(able)}"
        )
    if space != "embedding" and made.side != "visual":
        raise ValueError(f"the {space} feature is the image tower's: use the visual side")


def certify(
    clip: Clip, forgotten: Sequence[str], kept: Sequence[str], templates: Sequence[str]
) -> Certificate:
    """Prove from a model's own weights that forgotten names cannot win, or measure how far off.

    Args:
        clip: The edited model, as folded or as loaded from its folder.
        forgotten: Names that were forgotten.
        kept: Names that stay.
        templates: Class templates the zero-shot classifier is made with.

    Returns:
        One convex combination and one violation a forgotten name, over `kept`.
    """
    return certify_rows(clip, *(class_prototypes(clip, n, templates) for n in (forgotten, kept)))


def certify_plan(edited: Clip, made: Plan) -> Certificate:
    """The same for a plan just carried out; an untouched text tower need not encode again.

    Args:
        edited: The edited model.
        made: The plan its edit was made from.

    Returns:
        One convex combination and one violation a forgotten name, over `made.keep`.
    """
    if made.side == "text":
        return certify(edited, made.forget.names, made.keep, made.words.class_templates)
    return certify_rows(edited, made.forget_rows, made.keep_rows)


def certify_rows(
    clip: Clip, forget: Float[Tensor, "m dim"], keep: Float[Tensor, "n dim"]
) -> Certificate:
    """`certify` for names whose prototypes are at hand.

    Args:
        clip: The edited model.
        forget: `[m, dim]` text prototypes of the forgotten names, by its own text tower.
        keep: `[n, dim]` of the names that stay.

    Returns:
        One convex combination and one violation a forgotten name.
    """
    return certificate.certify(*_visual_map(clip), forget, keep)


def _visual_map(
    clip: Clip,
) -> tuple[Float[Tensor, "width dim"], Float[Tensor, " dim"] | None]:
    """The affine map from the last feature to the joint space; the identity where there is none."""
    try:
        projection = clip.projection("visual")
    except ValueError:
        return torch.eye(clip.dim, dtype=torch.float64), None
    return projection.matrix(), projection.bias()
