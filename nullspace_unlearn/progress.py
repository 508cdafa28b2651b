"""Progress bars: for eyes, never in a log."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm


def progress(
    steps: Iterable[Any] | None = None, *, hidden: bool | None = False, **said: Any
) -> Any:
    """A bar on stderr, where that is a terminal, or in a notebook.

    It has no colours. `TQDM_DISABLE=1` hides it, as everywhere.

    Args:
        steps: What it counts, unless it is told.
        hidden: Whether to show none.
        **said: What it says, for tqdm.

    Returns:
        The bar, to iterate over or to tell.
    """
    seen = "ipykernel" in sys.modules or getattr(sys.stderr, "isatty", bool)()
    off = os.environ.get("TQDM_DISABLE", "").lower() not in ("", "0", "false", "no")
    return tqdm(steps, disable=bool(hidden) or off or not seen, **said)
