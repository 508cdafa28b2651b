"""Few pictures, bundled ones and synthesised ones, and folders that `nsu` made."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "clip")]

import pytest  # noqa: E402
from shell import nsu  # noqa: E402

from nullspace_unlearn import clip, looks  # noqa: E402
from nullspace_unlearn.data import (  # noqa: E402
    bundled,
    find,
    mini,  # noqa: E402
)
from nullspace_unlearn.features import embed as embedding  # noqa: E402


@pytest.fixture(scope="session")
def few() -> Callable[..., Any]:
    """Two bundled pictures a cell, embedded once for each model."""
    original, made = embedding.embed, {}

    def embed(model: Any, source: Any = None, seed: int = 0, **options: Any) -> Any:
        source = source or bundled.bundled_to_report(2, seed)
        if not source.name.startswith("bundled") or model.changes or model.adapter:
            return original(model, source, **options)
        key = str(model.source.weights), model.source.sha256, source.name, len(source)
        if key not in made:
            made[key] = original(model, source, quiet=True, hidden=True)
        return made[key]

    return embed


@pytest.fixture(scope="session")
def load() -> Callable[..., Any]:
    """As ours, but the bundled model is read once; other folders whenever they are named."""
    original, bundled = clip.load, {}

    def cached(name: str, pretrained: str | None = None, **options: Any) -> Any:
        if name not in ("nsu-mini", str(mini.MODEL_FOLDER)) or pretrained:
            return original(name, pretrained, **options)
        key = name, *options.values()
        if key not in bundled:
            bundled[key] = original(name, **options)
        return bundled[key]

    return cached


@pytest.fixture(scope="session")
def pictures_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where synthesised pictures are kept, so that the tests, and those beside, make them once."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(
    few: Callable[..., Any],
    load: Callable[..., Any],
    tmp_path: Path,
    pictures_made: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(pictures_made))
    monkeypatch.setattr(find, "bundled_to_report", lambda seed: bundled.bundled_to_report(2, seed))
    monkeypatch.setattr(embedding, "embed", few)
    monkeypatch.setattr(clip, "load", load)
    full = looks.pictures_for
    monkeypatch.setattr(looks, "pictures_for", lambda space: replace(full(space), each=2))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Options of `nsu erase` -> folder it made of nsu-mini, unmeasured; not to be changed."""
    root = tmp_path_factory.mktemp("made")
    model = ("--model", mini.MODEL_FOLDER)

    @cache
    def folder(*options: str) -> Path:
        output = root / str(len(list(root.iterdir())))
        assert nsu("erase", *model, *options, "--output", output, "--quiet").code == 0
        return output

    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two pictures in each of 4 classes x 3 domains."""
    root = tmp_path_factory.mktemp("photos")
    mini.write_images(
        root, ["car", "truck", "dog", "tree"], ["photo", "sketch", "painting"], range(7000, 7002)
    )
    return root
