"""How much each layer matters to some images, relative to how much it matters to others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nullspace_unlearn.train.shots import Shots
from nullspace_unlearn.train.task import Task
from nullspace_unlearn.train.weights import encode_with

Similarity = Callable[[Mapping[str, Tensor], int], Float[Tensor, ""]]
"""Parameters by name and the number of an image -> a scalar of that image."""


def squared_gradients(
    similarity: Similarity, parameters: Mapping[str, Tensor], count: int
) -> dict[str, float]:
    """Mean square of one image's gradient: `E[g²]` over images and over the entries of a layer.

    Each image is differentiated on its own: the square of the mean gradient, which is what one
    backward pass over a batch would give, is 0 where the images pull in opposite directions.

    Args:
        similarity: The scalar of an image.
        parameters: Layers by name, of any floating dtype.
        count: Number of images.

    Returns:
        `E[g²]` of each layer; 0 for one that the similarity does not depend on, and everywhere if
        there is no image.
    """
    held = {key: value.detach().clone().requires_grad_() for key, value in parameters.items()}
    sums = torch.zeros(len(held), dtype=torch.float64)
    for i in range(count):
        found = torch.autograd.grad(similarity(held, i), list(held.values()), allow_unused=True)
        squares = (0.0 if g is None else float(g.double().square().mean()) for g in found)
        sums += torch.tensor(list(squares), dtype=torch.float64)
    return dict(zip(held, (sums / max(count, 1)).tolist(), strict=True))


def relative_fisher(task: Task, keys: Sequence[str]) -> dict[str, float]:
    """Relative Fisher information of layers: `E_f[g²] / E_r[g²]` (arXiv 2506.03117, equation 2).

    g is the gradient, with respect to the layer, of the cosine of an image with the text of its
    class; E_f is over the training images to be forgotten, E_r over those that stay. Chosen: the
    mean over a layer's entries, so that large layers are not preferred, and the ratio of means, not
    the mean of ratios.

    Args:
        task: The task.
        keys: Names of the layers' parameters in the model's state_dict.

    Returns:
        The ratio by name: 0 where the layer matters to neither, infinite where to none that stays.
    """
    model, device = task.clip.model, task.clip.device
    parameters = {key: model.get_parameter(key).float() for key in keys}
    forgotten = task.forgotten(task.shots)

    def over(some: Shots) -> dict[str, float]:
        def similarity(new: Mapping[str, Tensor], i: int) -> Tensor:
            image = some.read(torch.tensor([i])).to(device)
            embedding = F.normalize(encode_with(model, new, image)[0], dim=-1)
            return embedding @ task.text_with(dict(new))[some.labels[i]]

        return squared_gradients(similarity, parameters, len(some))

    gone, kept = (over(task.shots.subset(is_.nonzero()[:, 0])) for is_ in (forgotten, ~forgotten))
    return {key: _ratio(gone[key], kept[key]) for key in keys}


def _ratio(of: float, to: float) -> float:
    if of == 0:
        return 0.0
    return of / to if to > 0 else math.inf
