"""The transformer: what scikit-learn asks of one, and the patch's arithmetic in a pipeline."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.utils.estimator_checks import (  # noqa: E402
    check_estimator,
    estimator_checks_generator,
)

from nullspace_unlearn.patch import Patch  # noqa: E402
from nullspace_unlearn.stores.transformer import PatchTransformer  # noqa: E402


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def patch(dim: int, space: str = "embedding") -> Patch:
    return Patch(draw(dim, 1) / 3, draw(dim, 1, seed=1) / 3, space)


def test_every_check_of_scikit_learn_passes_with_a_patch_that_fits() -> None:
    """A patch is for one width, so each check is given one for the width that it brings."""
    left: dict[int, str] = {}
    for width in (3, 2, 10, 4, 1, 5, 20):
        made = enumerate(estimator_checks_generator(PatchTransformer(patch(width))))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for number, (estimator, check) in made:
                name = check.func.__name__
                if width != 3 and number not in left:
                    continue
                left.pop(number, None)
                try:
                    check(estimator)
                except (ValueError, AssertionError) as error:
                    left[number] = f"{name}: {error}"
                except pytest.skip.Exception:
                    pass
                except Exception as error:
                    assert type(error).__name__ == "SkipTest", (name, error)
        if width == 3:
            assert len(left) > 5  # control: a patch of one width alone would not do
    assert not left


def test_without_a_patch_nothing_changes() -> None:
    check_estimator(PatchTransformer())
    rows = draw(5, 4)
    assert np.array_equal(PatchTransformer().fit_transform(rows), rows)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_it_does_what_the_patch_says(dtype: type, tmp_path: Path) -> None:
    made, rows = patch(6), draw(50, 6).astype(dtype)
    made.save(tmp_path / "a.patch")
    out = PatchTransformer(tmp_path / "a.patch").fit_transform(rows)
    wanted = rows.astype(np.float64) @ (np.eye(6) - made.read @ made.write.T)
    assert out.dtype == dtype
    np.testing.assert_allclose(out, wanted, rtol=2e-3 if dtype == np.float16 else 1e-5, atol=1e-3)
    assert not np.allclose(out, rows, atol=1e-2)


def test_a_step_of_a_pipeline_and_a_parameter_of_a_search() -> None:
    """A class that lies along the direction that is removed is told no more."""
    labels = np.arange(200) % 2
    rows = draw(200, 6)
    rows[:, 0] = 4 * labels + 0.1 * rows[:, 0]
    axis = np.eye(6)[:, :1]
    pipeline = make_pipeline(PatchTransformer(lengths="linear"), LogisticRegression())
    search = GridSearchCV(pipeline, {"patchtransformer__patch": [None, Patch(axis, axis)]}, cv=2)
    found = search.fit(rows, labels).cv_results_["mean_test_score"]
    assert found[0] > 0.95 and abs(found[1] - 0.5) < 0.2


def test_patches_that_do_not_fit_are_refused() -> None:
    for made, message in (
        (PatchTransformer(patch(5)), "vectors of 6 dimensions, and the patch is for 5"),
        (PatchTransformer(patch(6, "mlp")), "reads the mlp feature"),
        (PatchTransformer("no.patch"), "is not a saved edit"),
    ):
        with pytest.raises(ValueError, match=message):
            made.fit(draw(5, 6))
