"""A picture is written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from nullspace_unlearn.files import OutputExists
from nullspace_unlearn.report.picture import FORMATS, picture

pytest.importorskip("matplotlib")


@pytest.mark.parametrize("ending", FORMATS)
def test_what_is_drawn_is_written_in_the_format_of_the_ending(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"drawn{ending}"
    with picture(path, (2, 1)) as figure:
        figure.subplots().plot([0, 1])
    head = path.read_bytes()[:8]
    assert head.startswith({".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[ending])


def test_a_drawing_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), picture(tmp_path / "a.png", (2, 1)):
        _ = 1 / 0
    assert not list(tmp_path.iterdir())


def test_an_existing_picture_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("mine")
    with pytest.raises(OutputExists), picture(tmp_path / "a.png", (2, 1)):
        raise AssertionError("drawn")
    assert (tmp_path / "a.png").read_text() == "mine"
    with pytest.raises(ValueError, match="is no picture of a report, so it is not replaced"):
        with picture(tmp_path / "a.png", (2, 1), overwrite=True):
            raise AssertionError("drawn")
    (tmp_path / "a.png").unlink()
    for _ in range(2):
        with picture(tmp_path / "a.png", (2, 1), overwrite=True):
            pass
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
