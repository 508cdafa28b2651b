"""Batched linear algebra: float64, relative tolerances.

Everything takes leading batch dimensions, runs on the device its input is on, and knows nothing of
models, files or requests.
"""

from nullspace_unlearn.linalg.bases import (
    as_float64,
    group_means,
    leading_basis,
    marked_first,
    unit,
)
from nullspace_unlearn.linalg.held_out import Ridge
from nullspace_unlearn.linalg.nearest import HullPoint, nearest_in_hull
from nullspace_unlearn.linalg.ridge import (
    covariance,
    oblique_dual,
    one_sided_ridge,
    regularised,
    solve_covariance_of_kept,
    solve_definite,
    weighted_ridge,
)

__all__ = [
    "HullPoint",
    "Ridge",
    "as_float64",
    "covariance",
    "group_means",
    "leading_basis",
    "marked_first",
    "nearest_in_hull",
    "oblique_dual",
    "one_sided_ridge",
    "regularised",
    "solve_covariance_of_kept",
    "solve_definite",
    "unit",
    "weighted_ridge",
]
