"""The contact sheet: every picture in its place, what failed marked, never too large."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from nullspace_unlearn.features import Features
from nullspace_unlearn.prototypes import Pictures
from nullspace_unlearn.report import sheet
from nullspace_unlearn.report.sheet import cell_lines, contact_sheet

VERMILION = (0xD5, 0x5E, 0x00)


def synthesis(
    classes: int, domains: int, each: int, size: tuple[int, int] = (32, 32), name: str = "class {}"
) -> Pictures:
    """Pictures each of one colour, no two alike; all reached."""
    n = classes * domains * each
    cell = torch.arange(n) // each
    colours = torch.tensor([colour(i) for i in range(n)], dtype=torch.uint8)
    features = Features(
        embeddings=torch.ones(n, 2),
        labels=cell // domains,
        class_names=tuple(name.format(i) for i in range(classes)),
        domains=cell % domains,
        domain_names=tuple(f"domain {i}" for i in range(domains)),
    )
    images = colours[:, :, None, None].expand(-1, -1, *size).contiguous()
    return Pictures(features, images, torch.ones(n, dtype=torch.bool))


def colour(i: int) -> tuple[int, int, int]:
    return 40 + i % 150, 60 + i // 150 % 150, 200


def where(picture: np.ndarray, shade: tuple[int, int, int]) -> np.ndarray:
    """Rows and columns of the pixels of a colour."""
    return np.argwhere((picture == np.array(shade)).all(-1))


def drawn(made: Pictures) -> np.ndarray:
    return np.asarray(contact_sheet(made))


@pytest.mark.parametrize("size", [(32, 32), (24, 32), (300, 200)])
def test_every_picture_once_rows_of_classes_columns_of_domains(size):
    made = synthesis(3, 2, 4, size)
    picture = drawn(made)
    boxes = []
    for i in range(24):
        found = where(picture, colour(i))
        (top, left), (bottom, right) = found.min(0), found.max(0)
        height, width = bottom - top + 1, right - left + 1
        assert len(found) == height * width  # whole, and nowhere else
        assert abs(height / width - size[0] / size[1]) < 0.02
        boxes.append((top, bottom, left, right))
    assert len({box[1] - box[0] for box in boxes}) == 1
    grid = np.array(boxes).reshape(3, 2, 4, 4)
    assert (grid[:, :, :, 0] == grid[:, :1, :1, 0]).all()  # a class is one row
    assert (grid[1:, :, :, 0] > grid[:-1, :, :, 1]).all()  # below the one before
    along = grid.reshape(3, 8, 4)
    assert (along[:, 1:, 2] > along[:, :-1, 3]).all()  # domain by domain, sample by sample
    within, between = along[0, 1, 2] - along[0, 0, 3], along[0, 4, 2] - along[0, 3, 3]
    assert between > 2 * within  # cells stand apart


def test_what_was_not_reached_is_marked_and_only_that():
    made = synthesis(3, 2, 4)
    assert not len(where(drawn(made), VERMILION))  # control
    missed = (5, 18)
    made.reached[list(missed)] = False
    picture = drawn(made)
    marks = where(picture, VERMILION)
    near = np.zeros(len(marks), dtype=bool)
    for i in missed:
        found = where(picture, colour(i))
        low, high = found.min(0) - 4, found.max(0) + 4
        mine = ((marks >= low) & (marks <= high)).all(1)
        assert 300 < mine.sum()
        near |= mine
        # A mark without its colour: the corner, top right, is filled.
        corner = picture[low[0] + 7, high[1] - 7]
        assert tuple(corner) == VERMILION
    assert near.all()


@pytest.mark.parametrize(
    ("shape", "cut"),
    [
        ((300, 2, 1), "40 of 300 classes"),
        ((2, 60, 1), "12 of 60 domains"),
        ((2, 2, 100), "8 of 100 pictures of each cell"),
        ((60, 30, 9), "40 of 60 classes, 12 of 30 domains, 8 of 9 pictures of each cell"),
        ((40, 12, 8), None),
    ],
)
def test_a_sheet_is_never_too_large_and_says_what_it_left_out(shape, cut, monkeypatch):
    said = []
    original = sheet._notes
    monkeypatch.setattr(sheet, "_notes", lambda *given: said.extend(original(*given)) or said)
    picture = contact_sheet(synthesis(*shape, size=(8, 8)))
    assert picture.width <= 3000 and picture.height <= 5300
    assert any("shown: the first " in line for line in said) == (cut is not None)
    if cut:
        assert f"shown: the first {cut}" in said


def test_the_note_is_on_the_sheet():
    whole, cut = synthesis(40, 1, 1), synthesis(41, 1, 1)
    assert contact_sheet(cut).height > contact_sheet(whole).height


@pytest.mark.parametrize("name", ["{}" + "x" * 400, "日本 {}", "é̈ {}"])
def test_any_name_can_be_drawn(name):
    picture = contact_sheet(synthesis(2, 2, 1, name=name))
    assert isinstance(picture, Image.Image) and picture.width < 1500


def test_lines_are_aligned_and_clean():
    cells = [
        {"class": name, "domain": domain, "pictures": 4, "reached": k, "cosine": 0.5}
        for name, domain, k in (("car", "sketch", 4), ("a\x1b[31m long\nname", "art", 0))
    ]
    lines = cell_lines(cells)
    assert lines == [
        "car             sketch  cosine 0.500  reached 4 of 4",
        "a[31m longname  art     cosine 0.500  reached 0 of 4",
    ]
    assert all(line.isprintable() for line in lines)
