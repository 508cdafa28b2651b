"""The page's examples with real vector indexes, each where its package is installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import nullspace_unlearn as nsu
from nullspace_unlearn.data.bundled import bundled_to_report
from nullspace_unlearn.features.embed import embed
from nullspace_unlearn.patching import make_patch
from nullspace_unlearn.prototypes import class_prototypes
from nullspace_unlearn.stores.change import change
from nullspace_unlearn.stores.job import edit_store

PAGE = Path(__file__).parents[2] / "docs" / "stores.md"
_BLOCK = re.compile(r"<!-- not run: needs (\w+) -->\n```python\n(.*?)```", re.S)
INDEXES: dict[str, str] = dict(_BLOCK.findall(PAGE.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page makes before the first index, of fewer pictures."""
    folder = tmp_path_factory.mktemp("stores")
    clip = nsu.load("nsu-mini", device="cpu")
    images = embed(clip, bundled_to_report(8, 0), quiet=True)
    rows = images.embeddings / images.embeddings.norm(dim=1, keepdim=True)
    np.save(folder / "store.npy", rows.half().numpy())
    words = class_prototypes(clip, images.class_names, ["a photo of a {class}."])
    np.savez(folder / "asked.npz", words=words.float().numpy(), names=list(images.class_names),
             labels=images.labels.numpy())  # fmt: skip
    patch = make_patch(clip, nsu.erase(clip, nsu.Forget(["car"])))
    patch.save(folder / "car.patch")
    edit_store(folder / "store.npy", folder / "edited.npy", change([patch]), quiet=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("package", INDEXES)
def test_a_search_before_and_after(package: str, stores: Path) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed, so its example is not run")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-c", INDEXES[package]], cwd=stores, env={**os.environ, "PATH": path},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_page_shows_some() -> None:
    assert {"faiss", "usearch", "lancedb", "qdrant_client"} == set(INDEXES)
