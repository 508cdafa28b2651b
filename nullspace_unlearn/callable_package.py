"""A package that is also a function: `nsu.evaluate(...)`, with its modules below `nsu.evaluate`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_HOME = "nullspace_unlearn.notebook"  # imported when called: it stands above these packages


class CallablePackage(ModuleType):
    """A package that stands for the function of its own name in `notebook`.

    The function is imported when it is first called or asked for its signature, so that the
    package itself costs nothing.
    """

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The function, by which `inspect.signature` tells what it takes."""
        return getattr(importlib.import_module(_HOME), self.__name__.rpartition(".")[2])

    def __call__(self, *arguments: Any, **choices: Any) -> Any:
        """Call the function."""
        return self.__wrapped__(*arguments, **choices)


def make_callable(name: str) -> None:
    """Make a package callable.

    Args:
        name: Its `__name__`; the package calls this while it is imported.
    """
    sys.modules[name].__class__ = CallablePackage
