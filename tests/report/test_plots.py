"""Grids drawn: the picture shows what it should, the table fits and is clean."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from nullspace_unlearn.evaluate.zeroshot import Grid
from nullspace_unlearn.files import OutputExists
from nullspace_unlearn.report.plots import grid_heatmap, grid_table

wcswidth = pytest.importorskip("wcwidth").wcswidth
CLASSES, DOMAINS = ("cat", "dog", "car"), ("photo", "sketch")
MASK = torch.tensor([[False, True], [False, False], [False, False]])
BEFORE = Grid(
    torch.tensor([[0.9, 0.8], [0.7, 0.6], [0.5, 0.0]]), torch.tensor([[9, 9], [9, 9], [9, 0]])
)
AFTER = Grid(BEFORE.accuracy.masked_fill(MASK, 0.05), BEFORE.count)
OUTLINE = (0xD5, 0x5E, 0x00)


def drawn(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def area(picture: np.ndarray, colour: tuple[float, ...]) -> int:
    return int((np.abs(picture - np.array(colour)).max(-1) <= 2).sum())


def shade(value: float) -> tuple[float, ...]:
    return tuple(255 * c for c in matplotlib.colormaps["cividis"](value)[:3])


def test_the_picture_shows_both_grids_and_the_request(tmp_path: Path) -> None:
    grid_heatmap(BEFORE, AFTER, MASK, CLASSES, DOMAINS, tmp_path / "a.png")
    picture = drawn(tmp_path / "a.png")
    cell = area(picture, shade(0.9)) / 2
    assert cell > 3000
    for value, times in ((0.8, 1), (0.05, 1), (0.7, 2), (0.6, 2)):
        assert area(picture, shade(value)) / cell == pytest.approx(times, rel=0.35)
    grid_heatmap(BEFORE, AFTER, torch.zeros_like(MASK), CLASSES, DOMAINS, tmp_path / "none.png")
    outline, caption = area(picture, OUTLINE), area(drawn(tmp_path / "none.png"), OUTLINE)
    assert outline > 2 * caption > 0


@pytest.mark.parametrize("suffix", [".png", ".svg", ".PDF"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    grid_heatmap(BEFORE, AFTER, MASK, CLASSES, DOMAINS, path)
    head = path.read_bytes()[:500].lower()
    assert suffix[1:].lower().encode() in head
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(OutputExists):
        grid_heatmap(BEFORE, AFTER, MASK, CLASSES, DOMAINS, path)
    grid_heatmap(BEFORE, AFTER, MASK, CLASSES, DOMAINS, path, overwrite=True)


def test_names_are_text_not_markup(tmp_path: Path) -> None:
    names = ("$\\frac{", "a\x1b[31m\nb", "x" * 500)
    grid_heatmap(BEFORE, AFTER, MASK, names, DOMAINS, tmp_path / "a.svg")
    assert "\x1b" not in (tmp_path / "a.svg").read_text()


def test_many_classes_make_a_picture_of_bounded_size(tmp_path: Path) -> None:
    grid = Grid(torch.rand(1000, 1), torch.ones(1000, 1).long())
    mask = torch.zeros(1000, 1, dtype=torch.bool)
    mask[500] = True
    grid_heatmap(grid, grid, mask, [str(i) for i in range(1000)], ["all"], tmp_path / "a.png")
    assert max(drawn(tmp_path / "a.png").shape) < 2000


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install 'nullspace-unlearn\[report\]'"):
        grid_heatmap(BEFORE, AFTER, MASK, CLASSES, DOMAINS, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
    assert "cat" in grid_table(BEFORE, AFTER, MASK, CLASSES, DOMAINS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "a.bmp"}, "ends in '.bmp'; allowed: .png .svg .pdf"),
        ({"path": "a"}, "ends in ''"),
        ({"classes": CLASSES[:2]}, "of one shape"),
        ({"mask": MASK.T}, "of one shape"),
        ({"after": Grid(torch.ones(3, 1), torch.ones(3, 1).long())}, "of one shape"),
    ],
)
def test_errors(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {
        "before": BEFORE, "after": AFTER, "mask": MASK, "classes": CLASSES, "domains": DOMAINS
    }  # fmt: skip
    values |= {"path": "a.png", **changes}
    values["path"] = tmp_path / values["path"]
    with pytest.raises(ValueError, match=message):
        grid_heatmap(**values)
    assert not list(tmp_path.iterdir())


# Tables.


def test_the_table() -> None:
    assert grid_table(BEFORE, AFTER, MASK, CLASSES, DOMAINS).splitlines() == [
        "     photo          sketch",
        "cat  0.90 -> 0.90   0.80 -> 0.05*",
        "dog  0.70 -> 0.70   0.60 -> 0.60",
        "car  0.50 -> 0.50   -",
    ]
    assert grid_table(BEFORE, None, None, CLASSES, DOMAINS).splitlines()[1] == "cat  0.90    0.80"


NAME = st.text(min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), classes=st.lists(NAME, min_size=1, max_size=5), wide=st.booleans())
def test_a_table_fits_shows_every_cell_and_is_clean(
    data: Any, classes: list[str], wide: bool
) -> None:
    domains = data.draw(st.lists(NAME, min_size=1, max_size=30 if wide else 4))
    shape = len(classes), len(domains)
    cells = st.lists(st.integers(0, 3), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])
    kind: Tensor = torch.tensor(data.draw(cells)).reshape(shape)
    grid = Grid(torch.full(shape, 0.25), (kind > 0).long())
    plain = ["class" for _ in classes], ["domain" for _ in domains]
    for names in (plain, (classes, domains)):
        table = grid_table(grid, grid, kind == 2, *names)
        assert all(wcswidth(line) <= 100 for line in table.split("\n"))
        assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in table.replace("\n", ""))
    table = grid_table(grid, grid, kind == 2, *plain)
    assert table.count("->") == int((kind > 0).sum())
    assert table.count("*") == int((kind == 2).sum())
    assert table.count("class") % len(classes) == 0 and table.count("domain") == len(domains)


def test_escape_sequences_and_wide_letters() -> None:
    names = ("\x1b[2J\x1b[31mcat\r\n", "\u202eevil\u2066", "猫猫")
    lines = grid_table(BEFORE, AFTER, MASK, names, DOMAINS).split("\n")
    assert len(lines) == 4 and "\x1b" not in "".join(lines)
    assert "\u202e" not in lines[2] and lines[2].startswith("evil")
    assert wcswidth(lines[3][: lines[3].index("0.50")]) == lines[2].index("0.70")
