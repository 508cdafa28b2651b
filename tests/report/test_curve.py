"""The course of a training, drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nullspace_unlearn.files import OutputExists
from nullspace_unlearn.report.plots import training_curve

pytest.importorskip("matplotlib")


def entry(stage: str, mem: float | None = None, cell: bool = False) -> dict[str, Any]:
    one: dict[str, Any] = {"stage": stage, "loss": {"mem<sub>": 0.5, "for": 2.0}}
    if mem is not None:
        group = 0.5 if cell else None
        one["validation"] = {"kept": mem, "forgotten": 0.25, "h4": 0.75, "same_class": group,
                             "same_domain": group}  # fmt: skip
    return one


def words(path: Path) -> str:
    """An SVG holds its texts."""
    return path.read_text()


def test_losses_and_scores_are_drawn(tmp_path: Path) -> None:
    training_curve([entry("a", 0.9), entry("a", 0.8), entry("b", 0.7)], tmp_path / "a.svg")
    said = words(tmp_path / "a.svg")
    for word in ("mem&lt;sub&gt;", "for", "Mem", "For", "H", "epoch"):
        assert f">{word}</text>" in said
    training_curve([entry("a", 0.9, cell=True)], tmp_path / "b.svg")
    assert ">H4</text>" in words(tmp_path / "b.svg") and ">H4</text>" not in said
    training_curve([entry("a")] * 2, tmp_path / "c.svg")  # control: no validation images
    assert ">Mem</text>" not in words(tmp_path / "c.svg")


def test_a_boundary_between_stages_is_seen(tmp_path: Path) -> None:
    pictures = []
    for second in "ab":
        path = tmp_path / f"{second}.png"
        training_curve([entry("a"), entry(second)], path)
        pictures.append(np.asarray(Image.open(path)))
    assert not np.array_equal(*pictures)


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the log is empty"):
        training_curve([], tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"allowed: \.png"):
        training_curve([entry("a")], tmp_path / "a.gif")
    training_curve([entry("a")], tmp_path / "a.png")
    with pytest.raises(OutputExists):
        training_curve([entry("a")], tmp_path / "a.png")
    training_curve([entry("a")], tmp_path / "a.png", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
