"""Bars are for eyes: on a terminal, and nowhere else."""

from __future__ import annotations

import io

import pytest

from nullspace_unlearn.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "hidden", "variable", "shows"),
    [
        (Terminal, False, None, True),
        (Terminal, None, "", True),
        (Terminal, None, "0", True),
        (Terminal, True, None, False),
        (Terminal, False, "1", False),
        (io.StringIO, False, None, False),
    ],
)
def test_a_bar_shows_on_a_terminal_unless_told_otherwise(
    stream, hidden, variable, shows, monkeypatch
) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    if variable is not None:
        monkeypatch.setenv("TQDM_DISABLE", variable)
    written = stream()
    monkeypatch.setattr("sys.stderr", written)
    assert list(progress(range(3), hidden=hidden, desc="counting")) == [0, 1, 2]
    assert ("counting" in written.getvalue()) == shows
    assert "\x1b[3" not in written.getvalue()  # no colours, so NO_COLOR has nothing to ask for


def test_no_command_draws_bars_of_its_own() -> None:
    from pathlib import Path

    root = Path(__file__).parents[1] / "nullspace_unlearn"
    own = [f.name for f in root.rglob("*.py") if "tqdm(" in f.read_text(encoding="utf-8")]
    assert own == ["progress.py"]
