"""Pages that list what a table holds hold all of it."""

from __future__ import annotations

from pathlib import Path

from nullspace_unlearn.evaluate.figures import FIGURES, FORGOTTEN

PAGE = Path(__file__).parents[1] / "docs" / "figures.md"


def test_the_page_of_figures_lists_every_one_as_it_is_declared():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    for one in FIGURES.values():
        cells = (f"`{one.name}`", one.title, one.meaning, one.good, one.unit, one.images)
        assert "| " + " | ".join(cells) + " |" in lines
    assert sum(line.startswith("| `") for line in lines) == len(FIGURES)
    assert f"At most {FORGOTTEN:g} of both" in PAGE.read_text(encoding="utf-8")
