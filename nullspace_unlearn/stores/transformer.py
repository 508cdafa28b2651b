"""A patch as a step of a scikit-learn pipeline, for embeddings."""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from nullspace_unlearn.patch import Patch
from nullspace_unlearn.stores.change import Lengths, change


class PatchTransformer(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Edits embeddings as `nsu apply --embeddings` does: `nsu erase` has learned all there is.

    Args:
        patch: A patch file, or a `Patch`; None changes nothing, so that a search over parameters
            can leave the edit out.
        lengths: "unit": rows of length 1 leave with length 1. "linear": rows keep the length that
            the edit gives them.

    Attributes:
        patch_: The patch, once fitted.
        n_features_in_: The width of the embeddings it was fitted on, which is the patch's.
    """

    def __init__(
        self, patch: Patch | str | PathLike[str] | None = None, lengths: Lengths = "unit"
    ) -> None:
        self.patch = patch
        self.lengths = lengths

    def fit(self, X: Any, y: Any = None) -> PatchTransformer:  # noqa: N803
        """Read the patch, and check that it is for embeddings of this width.

        Args:
            X: `[n, dim]` embeddings.
            y: Passed over.

        Returns:
            The transformer.

        Raises:
            ValueError: If the patch is damaged, does not act on embeddings, or is of another width.
        """
        rows = validate_data(self, X, dtype=(np.float64, np.float32, np.float16))
        given = self.patch
        self.patch_ = given if given is None or isinstance(given, Patch) else Patch.load(str(given))
        if self.patch_ is not None:
            change([self.patch_], self.lengths).check_width(rows.shape[1], "X")
        return self

    def transform(self, X: Any) -> np.ndarray:  # noqa: N803
        """Edit embeddings.

        Args:
            X: `[n, dim]` embeddings, finite.

        Returns:
            `[n, dim]` in their dtype; float64 for whole numbers.

        Raises:
            ValueError: If they are of another width, or hold NaN or Inf.
        """
        check_is_fitted(self)
        kinds = (np.float64, np.float32, np.float16)
        rows = validate_data(self, X, dtype=kinds, reset=False)
        if self.patch_ is None:
            return np.array(rows)
        return change([self.patch_], self.lengths).of(rows)[0]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32", "float16"]
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "n_features_in_")
