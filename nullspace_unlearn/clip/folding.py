"""What an edit can be folded into, by the space it reads: found, folded, verified in one way.

A deeper space is an `Inner` with a finder in `INNER`; the output folder, its undo file and its
recipe follow from what folding records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nullspace_unlearn.clip.grid import off_grid
from nullspace_unlearn.clip.mlp import find_mlp
from nullspace_unlearn.clip.network import (
    Change,
    check_took,
    current,
    encode,
    exact_products,
    probe_inputs,
    record,
    replace_parameters,
    share,
)
from nullspace_unlearn.clip.projection import find
from nullspace_unlearn.clip.towers import GROWN
from nullspace_unlearn.clip.value import find_value
from nullspace_unlearn.edit import DEEPER, Edit, Side, Space

_HEAD = GROWN.rpartition(".")[0]


@runtime_checkable
class Place(Protocol):
    """Where in a model an edit of some space goes, and what it does there."""

    @property
    def key(self) -> str:
        """Name of the weight in the model's state_dict."""
        ...

    def check_fits(self, edit: Edit) -> None:
        """Refuse an edit that does not fit.

        Args:
            edit: One edit of this place's space.

        Raises:
            ValueError: If its dimensions differ.
        """
        ...

    def edited(self, edit: Edit, now: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
        """The parameters that an edit changes, after it.

        Args:
            edit: One edit that fits.
            now: Key and parameter -> the parameter as earlier edits left it, before rounding.

        Returns:
            Parameters by key as they are stored, float64, on the CPU.

        Raises:
            ValueError: If the weights cannot carry the edit.
        """
        ...

    def predict(
        self, model: nn.Module, edit: Edit, inputs: Tensor
    ) -> tuple[Float[Tensor, "n dim"], Float[Tensor, "n dim"]]:
        """What an edit makes of embeddings, computed without touching weights.

        Args:
            model: The model without the edit.
            edit: One edit that fits.
            inputs: Images, or token ids on the text side.

        Returns:
            `[n, dim]` embeddings without the edit, and with it; float64.
        """
        ...


class Seen(Protocol):
    """What one forward pass says of images, from an inner layer to the joint space."""

    @property
    def rows(self) -> Float[Tensor, "n source"]:
        """`[n, source]` what enters the layer, on the scale of z: what erasers read."""
        ...

    @property
    def hidden(self) -> Float[Tensor, "n width"]:
        """`[n, width]` what enters the final projection."""
        ...

    @property
    def embedding(self) -> Float[Tensor, "n dim"]:
        """`[n, dim]` z, not normalised."""
        ...


@runtime_checkable
class Inner(Place, Protocol):
    """A linear layer before the final projection, whose input an edit can read."""

    @property
    def sizes(self) -> tuple[int, int]:
        """How many numbers an edit reads, and writes."""
        ...

    def read(self, model: nn.Module, images: Float[Tensor, "n 3 rows columns"]) -> Any:
        """Read images from the layer on, in one forward pass.

        Args:
            model: What `headless` makes of the model that the layer was found in.
            images: `[n, 3, rows, columns]` preprocessed images in the dtype the tower computes in.

        Returns:
            What `apply` takes, a `Seen`, in float32 at least.
        """
        ...

    def of_prototypes(self, rows: Tensor, hidden: Tensor) -> Any:
        """What `apply` takes, from rows and hidden features alone."""
        ...

    def apply(self, edit: Edit, features: Any) -> Float[Tensor, "*batch n dim"]:
        """What an edit makes of embeddings, exactly, without touching weights."""
        ...

    def carry_back(self, write: Tensor) -> Tensor:
        """What an edit writes in the layer so that it shifts z as an eraser says."""
        ...


INNER: dict[Space, Callable[[nn.Module], Inner]] = {"mlp": find_mlp, "value": find_value}
"""How the layer of each space of `DEEPER` is found; raises ValueError where it is not there."""


def _inner(space: Space) -> Callable[[nn.Module, Side], Place]:
    def found(model: nn.Module, side: Side) -> Place:
        if side != "visual":
            raise ValueError(f"space {space!r} is the visual tower's; fold it on side 'visual'")
        return INNER[space](model)

    return found


def _hidden(model: nn.Module, side: Side) -> Place:
    if side != "visual":
        raise ValueError("a hidden edit reads the visual hidden feature; fold it on side 'visual'")
    return find(model, side)


PLACES: dict[Space, Callable[[nn.Module, Side], Place]] = {
    "embedding": find,
    "hidden": _hidden,
    **{space: _inner(space) for space in DEEPER},
}
"""How the place of each space is found in a model; raises ValueError where it is not there."""


def fold(
    model: nn.Module, edit: Edit, side: Side = "visual", before: Sequence[Change] = ()
) -> tuple[nn.Module, tuple[Change, ...]]:
    """Write an edit into a copy of a model, and prove by a forward pass that it took.

    The arithmetic is float64, cast back to the parameter's dtype. The copy is in the original's
    training mode and shares every tensor but the edited ones with it. Where nothing can invert the
    edit, and the tensor consists of 16-bit numbers, `grid.off_grid` of it is what is edited: so
    that the grid does not give back what the edit removes.

    Args:
        model: An open_clip model, or transformers' `CLIPModel`.
        edit: One edit, not a batch. An embedding edit goes on either side (transposed on the text
            side); others on the visual side only.
        side: The tower to change.
        before: The changes that made `model`, so that edits compose without rounding in between.

    Returns:
        The edited copy, and all changes so far, one a parameter. An edit that removes nothing
        returns the model itself and `before`.

    Raises:
        ValueError: If the model has no such place, the edit does not fit it, or the edited weights
            overflow the model's dtype.
        RuntimeError: If the edited tower does not compute what the edit says.
    """
    place = PLACES[edit.space](model, side)
    place.check_fits(edit)
    if edit.batch_shape:
        raise ValueError(f"a batch of edits {list(edit.batch_shape)} cannot be folded: index one")
    if not (edit.read.any() and edit.write.any()):
        return model, tuple(before)
    hidden: dict[str, Tensor] = {}

    def now(key: str, parameter: Tensor) -> Tensor:
        value = current(before, key, parameter)
        if gone:
            value = hidden[key] = off_grid(value)
        return value

    gone = not invertible(edit)
    new = place.edited(edit, now)
    edited = replace_parameters(model, new)
    plain = replace_parameters(model, hidden) if hidden else model
    _verify(plain, edited, PLACES[edit.space](plain, side), edit, side)
    return edited, record(model, new, side, before)


@contextmanager
def applied(model: nn.Module, edit: Edit, side: Side = "visual") -> Iterator[None]:
    """Put an edit into a live model while a block lasts; see `Edit.applied`.

    Parameters stay the objects that they are and point to edited numbers meanwhile; their own are
    not touched, so whatever else holds the model (an optimiser, a compiled graph) sees the edit
    come and go.

    Args:
        model: As for `fold`; it may be compiled.
        edit: As for `fold`.
        side: The tower to change.

    Yields:
        Nothing.

    Raises:
        ValueError: As `fold`.
        RuntimeError: As `fold`.
    """
    live: nn.Module = getattr(model, "_orig_mod", model)
    edited, changes = fold(live, edit, side)
    held = dict(live.named_parameters())
    own = {change.key: held[change.key].data for change in changes if change.key in held}
    grown = [change.key for change in changes if change.key not in held]
    try:
        for key in own:
            held[key].data = edited.get_parameter(key).data
        for name, module in edited.get_submodule(_HEAD).named_children() if grown else ():
            live.get_submodule(_HEAD).add_module(name, module)
        yield
    finally:
        for key, value in own.items():
            held[key].data = value
        if grown:
            live.get_submodule(_HEAD)._modules.clear()  # it was empty: the tower ended there


def invertible(edit: Edit) -> bool:
    """Whether somebody who has an edit can take it back from the weights.

    Args:
        edit: One edit.
    """
    if edit.space != "embedding":
        return True  # it was added, and can be subtracted
    try:
        edit.inverse()
    except ValueError:
        return False
    return True


def spaces(model: nn.Module) -> tuple[Space, ...]:
    """What an edit of a model's image tower can read.

    Args:
        model: An open_clip model, or transformers' `CLIPModel`.

    Returns:
        The spaces whose place the model has.
    """
    return tuple(space for space in PLACES if _key(model, space, "visual") is not None)


def describe(model: nn.Module) -> dict[str, Any]:
    """Say where a model keeps what can be edited, in plain JSON values.

    Args:
        model: An open_clip model, or transformers' `CLIPModel`.

    Returns:
        For "visual" and "text": key, bias, layout, width, dim of the final projection, whether it
        is stored (or would be added), and for each space of `DEEPER` the key of the weight that an
        edit of it changes, None where it cannot reach that; None for a side that cannot be edited.
    """
    return {"visual": _side(model, "visual"), "text": _side(model, "text")}


@torch.no_grad()
def _verify(model: nn.Module, edited: nn.Module, place: Place, edit: Edit, side: Side) -> None:
    """Compare the edited tower on random inputs with what the edit makes of the original's."""
    original, changed = _still(model), _still(edited)
    inputs = probe_inputs(model, side)
    with exact_products():
        plain, expected = place.predict(original, edit, inputs)
        actual = encode(changed, inputs, side).double()
    check_took(edited, place.key, plain, expected, actual)


def _still(model: nn.Module) -> nn.Module:
    """In evaluation mode; a copy, where a forward pass would move the running statistics."""
    training = any(module.training for module in model.modules())
    return share(model, {}).eval() if training else model


def _side(model: nn.Module, side: Side) -> dict[str, Any] | None:
    try:
        projection = find(model, side)
    except ValueError:
        return None
    return {
        "key": projection.key,
        "bias": projection.bias_key,
        "layout": projection.layout,
        "width": projection.width,
        "dim": projection.dim,
        "stored": projection.weight is not None,
        **{space: _key(model, space, side) for space in DEEPER},
    }


def _key(model: nn.Module, space: Space, side: Side) -> str | None:
    try:
        return PLACES[space](model, side).key
    except ValueError:
        return None
