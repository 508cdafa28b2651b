"""An edit of embeddings as a layer of a network."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


def subtracted(
    features: Float[Tensor, "*any n dim"],
    source: Float[Tensor, "*any n source"],
    read: Float[Tensor, "*batch source rank"],
    write: Float[Tensor, "*batch dim rank"],
) -> Float[Tensor, "*out n dim"]:
    """`features - (source @ read) @ writeT`, computed in the matrices' dtype.

    Args:
        features: `[*any, n, dim]` embeddings.
        source: `[*any, n, source]` what is read; the embeddings themselves, or hidden features.
        read: `[*batch, source, rank]` of a dtype at least as wide as the features'.
        write: `[*batch, dim, rank]`.

    Returns:
        `[*out, n, dim]` in the features' dtype.
    """
    edited = features.to(read.dtype) - (source.to(read.dtype) @ read) @ write.mT
    return edited.to(features.dtype)


class EditLayer(nn.Module):
    """What `Edit.module` gives: an edit for embeddings, whose matrices move with the network.

    Args:
        read: `[source, rank]`; copied.
        write: `[dim, rank]`; copied.
        reads_hidden: Whether hidden features are read, which are then given beside the embeddings.
    """

    read: Tensor
    write: Tensor

    def __init__(
        self,
        read: Float[Tensor, "source rank"],
        write: Float[Tensor, "dim rank"],
        reads_hidden: bool = False,
    ) -> None:
        super().__init__()
        self.reads_hidden = reads_hidden
        self.register_buffer("read", read.detach().clone())
        self.register_buffer("write", write.detach().clone())

    def forward(
        self,
        features: Float[Tensor, "*any n dim"],
        hidden: Float[Tensor, "*any n width"] | None = None,
    ) -> Float[Tensor, "*any n dim"]:
        """Edit embeddings; see `Edit.apply`.

        Args:
            features: `[*any, n, dim]`, of any floating dtype.
            hidden: `[*any, n, width]`, where the edit reads them.

        Returns:
            `[*any, n, dim]` in the features' dtype, not normalised.

        Raises:
            ValueError: If hidden features are to be read and are not given.
        """
        if self.reads_hidden and hidden is None:
            raise ValueError("a hidden edit reads the hidden feature: pass hidden=[n, width]")
        dtype = torch.promote_types(features.dtype, self.read.dtype)
        source = hidden if self.reads_hidden and hidden is not None else features
        return subtracted(features, source, self.read.to(dtype), self.write.to(dtype))
