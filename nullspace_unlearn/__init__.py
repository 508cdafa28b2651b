"""Make a CLIP model forget: in closed form, without training or data.

Load a model, say what goes, fold the edit in, save a folder that stock open_clip loads:

    >>> import nullspace_unlearn as nsu
    >>> clip = nsu.load("nsu-mini")
    >>> edit = nsu.erase(clip, nsu.Forget(classes=["car"], domains=["sketch"]))
    >>> edit.fold(clip).save("out/")  # doctest: +SKIP

This edit is made from prompts alone, by `gated`. Where a domain is named, `nsu erase` makes
pictures from the model first, and from these the deeper edit of `neutral`:

    >>> plan = nsu.plan(clip, nsu.Forget(classes=["car"], domains=["sketch"]), images=True)
    >>> from nullspace_unlearn.looks import synthesise_for
    >>> edit = nsu.erase(clip, plan, visual=synthesise_for(clip, plan))  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nullspace_unlearn.version import __version__

if TYPE_CHECKING:
    from nullspace_unlearn import erasers
    from nullspace_unlearn.clip.load import load
    from nullspace_unlearn.clip.model import Clip
    from nullspace_unlearn.edit import Edit
    from nullspace_unlearn.forget import Forget
    from nullspace_unlearn.notebook import audit, evaluate, sweep
    from nullspace_unlearn.plans import Plan, plan
    from nullspace_unlearn.unlearn import erase

__all__ = [
    "Clip",
    "Edit",
    "Forget",
    "Plan",
    "__version__",
    "audit",
    "erase",
    "erasers",
    "evaluate",
    "load",
    "plan",
    "sweep",
]

# torch and open_clip take seconds to import; each name brings what it needs when first used, so
# that `nsu --help` need not wait.
_HOME = {
    "Clip": "clip",
    "Edit": "edit",
    "Forget": "forget",
    "Plan": "plans",
    "erase": "unlearn",
    "load": "clip",
    "plan": "plans",
    "sweep": "notebook",
}

# These hold several names; some can be called too.
_MODULES = ("audit", "erasers", "evaluate")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"nullspace_unlearn.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"nullspace_unlearn.{_HOME[name]}"), name)
