"""Models small enough to build in a moment, made once a session."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent))

import pico  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from nullspace_unlearn.clip import Clip, load  # noqa: E402
from nullspace_unlearn.edit import Edit  # noqa: E402


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small only lose time to threads that wait for a busy core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Name of an open_clip configuration, dtype -> folder of a tiny random model like it."""
    root = tmp_path_factory.mktemp("pico")

    def folder(name: str, dtype: torch.dtype = torch.float32) -> Path:
        path = root / f"{name}-{dtype}".replace("torch.", "")
        header = {"format": "pt", "note": "naïve"}
        return path if path.exists() else pico.write(name, path, dtype, header)

    return folder


@pytest.fixture(scope="session")
def clip_of(folder_of: Callable[..., Path]) -> Callable[..., Clip]:
    """The same, loaded."""

    @cache
    def clip(name: str) -> Clip:
        return load(str(folder_of(name)), device="cpu")

    return clip


@pytest.fixture(scope="session")
def random_edit() -> Callable[..., Edit]:
    """Dimensions -> an edit (embedding or hidden) of rank 3, neither symmetric nor idempotent."""

    def edit(dim: int, source: int | None = None, seed: int = 0) -> Edit:
        random = torch.Generator().manual_seed(seed)
        return Edit(
            read=torch.randn(source or dim, 3, generator=random, dtype=torch.float64) / 3,
            write=torch.randn(dim, 3, generator=random, dtype=torch.float64) / 3,
            space="hidden" if source else "embedding",
            provenance={"method": "random", "seed": seed},
        )

    return edit
