"""LEACE: least-squares concept erasure on prototypes, an independent peer."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nullspace_unlearn.edit import Edit
from nullspace_unlearn.erasers.method import Given, Method, said
from nullspace_unlearn.linalg import as_float64


@dataclass(frozen=True)
class Numbers:
    """What `leace` must be told beside prototypes.

    Attributes:
        shrinkage: Whether to shrink the covariance, where the concept does not survive it.
        svd_tol: Singular values of the whitened cross-covariance at or below it are left alone, at
            least 0.
    """

    shrinkage: bool = True
    svd_tol: float = 1e-6

    def __post_init__(self) -> None:
        if not self.svd_tol >= 0:
            raise ValueError(f"svd_tol must be at least 0, got {self.svd_tol}")


# How much of the cross-covariance may be left for the concept to count as erased.
_LEFT = 1e-6


def leace(
    forget: Float[Tensor, "*batch m dim"],
    keep: Float[Tensor, "*batch_or_none n dim"],
    *,
    labels: Int[Tensor, " m"] | None = None,
    side: Literal["text", "visual"] = "text",
    shrinkage: bool = True,
    svd_tol: float = 1e-6,
) -> Edit:
    """Erase "which forgotten class is this" from prototypes, through the `concept-erasure` package.

    LEACE (Belrose et al., arXiv 2306.03819) is the affine map that changes the samples least among
    those that leave their covariance with the concept zero, `x' = x - (x - mean) A Bᵀ`. The
    samples are the forgotten and kept prototypes stacked; the concept is one indicator a forgotten
    class, all zero on kept rows. (One indicator for all of them, "forgotten or not", would only
    centre their mean and leave each class where it stands about it.)

    Only the linear part fits a final projection, so the constant `mean A Bᵀ` is dropped. A
    covariance does not see a constant, so the erasure is as complete; the samples' mean moves, so
    the change is no longer the least. For text prototypes that leaves `M t_c = M mean(keep)`: a
    forgotten class scores the mean of the kept classes on every image.

    `svd_tol` is passed on because the package's default, 0.01, is absolute: cross-covariances of
    unit vectors fall below it as the vocabulary grows, and then nothing is erased, silently.

    Args:
        forget: `[*batch, m, dim]` prototypes to forget.
        keep: `[n, dim]` shared by the batch, or `[*batch, n, dim]`: prototypes to keep.
        labels: `[m]` the class of each forgotten row, where several rows are of one class;
            absent: every row is a class of its own.
        side: Whether the prototypes are text (erased from the text features, hence transposed in
            the joint operator) or visual (erased from the image features themselves).
        shrinkage: Whether to shrink the covariance (random matrix theory). With few samples the
            shrunk matrix need not be a covariance and the concept can survive; then the plain one
            is used instead, and the provenance says so.
        svd_tol: Singular values of the whitened cross-covariance at or below it are left alone.

    Returns:
        An edit whose rank is at most the number of forgotten classes, float64. A batch is solved
        one by one.

    Raises:
        ValueError: If `concept-erasure` is missing, shapes do not fit, a prototype is not finite,
            or the edit would remove nothing.
    """
    f, r = as_float64("forget", forget), as_float64("keep", keep)
    if f.ndim < 2 or r.ndim not in (2, f.ndim) or f.shape[-1] != r.shape[-1]:
        raise ValueError(
            f"expected forget [*batch, m, dim] and keep [n, dim] or [*batch, n, dim], got "
            f"{list(f.shape)} and {list(r.shape)}"
        )
    if f.shape[-2] == 0 or r.shape[-2] == 0:
        raise ValueError("leace needs at least one prototype to forget and one to keep")
    if side not in ("text", "visual"):
        raise ValueError(f"side is {side!r}; it must be 'text' or 'visual'")
    rows = torch.arange(f.shape[-2]) if labels is None else labels.cpu()
    if rows.shape != f.shape[-2:-1]:
        raise ValueError(f"labels must be [{f.shape[-2]}], one a row, got {list(rows.shape)}")
    indicator = (rows[:, None] == torch.tensor(sorted(set(rows.tolist())))).to(f)
    batch = f.shape[:-2]
    if r.ndim == 2:
        r = r.expand(*batch, *r.shape)
    fitted = [
        _fit(torch.cat([one, kept]), indicator, shrinkage, svd_tol)
        for one, kept in zip(
            f.reshape(-1, *f.shape[-2:]), r.reshape(-1, *r.shape[-2:]), strict=True
        )
    ]
    numbers = Numbers(all(fit[2] for fit in fitted), svd_tol)
    look, change = torch.stack([fit[0] for fit in fitted]), torch.stack([fit[1] for fit in fitted])
    look, change = (part.reshape(*batch, *part.shape[-2:]) for part in (look, change))
    return Edit(
        read=change if side == "text" else look,
        write=look if side == "text" else change,
        provenance={**said("leace", numbers, look.shape[-1]), "side_of_prototypes": side},
    )


def _derive(given: Given, numbers: Numbers) -> Edit:
    def one(request: Given) -> Edit:
        told = request.told()
        forget, keep = told.rows[told.forgotten], told.rows[told.kept]
        return leace(forget, keep, shrinkage=numbers.shrinkage, svd_tol=numbers.svd_tol)

    return given.one_by_one(one)


METHOD = Method(
    name="leace",
    title="erase which forgotten class it is, least squares",
    paper="arXiv 2306.03819",
    numbers=Numbers,
    derive=_derive,
)


def _fit(
    samples: Float[Tensor, "n dim"], indicator: Float[Tensor, "m k"], shrinkage: bool, tol: float
) -> tuple[Float[Tensor, "dim k"], Float[Tensor, "dim k"], bool]:
    """`A`, `B` of `x' = x - (x - mean) A Bᵀ`, and whether the covariance was shrunk."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it compiles with torch.jit, which warns of its age
            from concept_erasure import LeaceFitter
    except ImportError:
        raise ValueError(
            "leace needs the concept-erasure package: pip install 'nullspace-unlearn[leace]'"
        ) from None
    # The package's tolerances are absolute: made for vectors of about unit length.
    samples = samples / torch.linalg.vector_norm(samples, dim=-1).mean()
    labels = samples.new_zeros(len(samples), indicator.shape[-1])
    labels[: len(indicator)] = indicator
    for shrunk in (True, False) if shrinkage else (False,):
        # No trace constraint: it never binds in exact arithmetic, and where it does it un-erases.
        fitter = LeaceFitter.fit(
            samples, labels, shrinkage=shrunk, svd_tol=tol, constrain_cov_trace=False
        )
        left, right = fitter.eraser.proj_left, fitter.eraser.proj_right
        cross = fitter.sigma_xz
        rest = cross - left @ (right @ cross)
        if torch.linalg.norm(rest) <= _LEFT * torch.linalg.norm(cross):
            return right.mT, left, shrunk
    raise ValueError(
        f"the edit would not remove the concept: svd_tol={tol} is too large for these prototypes, "
        "or no covariance sets the forgotten ones apart"
    )
