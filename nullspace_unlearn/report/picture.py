"""What all pictures share: formats, colours, and a figure that is written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nullspace_unlearn.files import new_file, refuse_existing, refuse_foreign

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")
"""Endings of the files that `picture` can write."""

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Of Okabe and Ito, told apart with every kind of colour blindness."""

_SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "nullspace-unlearn"}
"""Letters stay letters, which can be found, read out and written in any script; and the same
picture is the same file."""

_NO_DATE = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}

MARKS = "osD^v<>Ph"
"""Which tell apart what has one colour, or is printed without."""


def check_picture(path: str | Path) -> None:
    """Refuse a picture that cannot be drawn, before any work is spent on it.

    Args:
        path: The picture to write.

    Raises:
        ValueError: If matplotlib is not installed, the ending is not one of `FORMATS`, or
            another file is there.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(
            f"picture {str(path)!r} ends in {path.suffix!r}; allowed: {' '.join(FORMATS)}"
        )
    # Which matplotlib writes into each of its pictures, in one case or the other.
    refuse_foreign(path, b"atplotlib", "picture of a report")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError(
            "pictures need matplotlib: pip install 'nullspace-unlearn[report]'"
        ) from None


@contextmanager
def picture(
    path: str | Path, size: tuple[float, float], overwrite: bool = False
) -> Iterator[Figure]:
    """A figure to draw on, written when the block ends without an error.

    Args:
        path: The picture to write; its ending, one of `FORMATS`, says the format.
        size: Width and height in inches.
        overwrite: Whether an existing file may be replaced.

    Yields:
        The figure.

    Raises:
        OutputExists: If the file exists and `overwrite` is false.
        ValueError: If matplotlib is not installed, or the ending is another.
    """
    path = Path(path)
    refuse_existing(path, overwrite)
    check_picture(path)
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kind = path.suffix.lower()
    with rc_context(_SETTINGS), new_file(path, overwrite) as temporary:
        # pyplot would keep the figure, and might open a window; a bare Figure does neither.
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(temporary, format=kind[1:], dpi=150, metadata=_NO_DATE[kind])
