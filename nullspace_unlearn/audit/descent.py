"""Whether an edited model comes from the original one: told from the tensors, not from names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nullspace_unlearn.clip import Clip
from nullspace_unlearn.clip.towers import GROWN


def differences(original: Clip, edited: Clip) -> dict[str, Tensor]:
    """What was changed in a model's weights.

    Args:
        original: The untouched model.
        edited: The model that is said to come from it.

    Returns:
        Key -> new less old `[...]`, float64, on the CPU, of each tensor that differs; of a
        projection that the edit added, the difference from none, the identity.

    Raises:
        ValueError: If the two have other tensors, the edited model's recipe does not say that one
            which differs was edited, or there is no recipe and no weight is the same: then it does
            not descend from the original.
    """
    old, new = original.model.state_dict(), edited.model.state_dict()
    if edited.adapter is not None and original.adapter is None:
        # Visual prompts leave the weights as they are; those of the blocks go by other names then.
        if off := [key for key in old if key in new and _moved(old[key], new[key]) is not None]:
            raise _unrelated(f"{off[0]} differs, and visual prompts change no weight")
        return {}
    grown = {key for key in set(new) - set(old) if key.startswith(f"{GROWN}.")}
    for key in sorted((set(old) ^ set(new)) - grown):
        raise _unrelated(f"only one of them has {key}")
    for key, value in old.items():
        if value.shape != new[key].shape:
            raise _unrelated(f"{key} is {list(new[key].shape)}, not {list(value.shape)}")
    found = {key: moved for key in old if (moved := _moved(old[key], new[key])) is not None}
    if said := _said(original, edited):
        for key in found:
            if key not in said:
                raise _unrelated(
                    f"{key} differs and its recipe does not say that it was edited "
                    f"({len(found)} of {len(old)} tensors differ)"
                )
    elif len(found) > 1 and all(key in found for key in old if old[key].ndim > 1):
        raise _unrelated("every weight differs and it has no recipe")
    for key in grown:
        found[key] = new[key].double().cpu() - torch.eye(*new[key].shape, dtype=torch.float64)
    return found


def _said(original: Clip, edited: Clip) -> set[str]:
    """The parameters that the edited model's history says were changed."""
    done: list[Mapping[str, object]] = list(edited.history.edits[len(original.history.edits) :])
    lists = [edit.get("parameter") for edit in done]
    return {key for keys in lists if isinstance(keys, list) for key in keys}


def _moved(old: Tensor, new: Tensor) -> Tensor | None:
    """The difference; None where there is none."""
    if not old.is_floating_point() or torch.equal(old.cpu(), new.cpu().to(old.dtype)):
        return None
    return new.double().cpu() - old.double().cpu()


def _unrelated(why: str) -> ValueError:
    return ValueError(f"the edited model does not descend from the original: {why}")
