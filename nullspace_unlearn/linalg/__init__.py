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
from nullspace_unlearn.linalg.coupled import CoupledRidge
from nullspace_unlearn.linalg.held_out import Ridge
from nullspace_unlearn.linalg.nearest import HullPoint, Metric, nearest_in_hull, stacked
from nullspace_unlearn.linalg.ridge import (
    Spread,
    covariance,
    oblique_dual,
    one_sided_ridge,
    regularised,
    solve_covariance_of_kept,
    solve_definite,
    solve_moment_of_kept,
    weighted_ridge,
)

__all__ = [
    "CoupledRidge",
    "HullPoint",
    "Metric",
    "Ridge",
    "Spread",
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
    "solve_moment_of_kept",
    "stacked",
    "unit",
    "weighted_ridge",
]
