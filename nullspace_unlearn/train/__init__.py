"""The gradient path: trained unlearning methods, each from its paper, on one loop."""

from __future__ import annotations

import dataclasses
import importlib
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal

from nullspace_unlearn.spelling import did_you_mean, listed
from nullspace_unlearn.train.loop import Settings, Trained, train
from nullspace_unlearn.train.measured import Measured, train_and_measure
from nullspace_unlearn.train.method import Stage, TrainedMethod
from nullspace_unlearn.train.shots import Shots, from_source, from_tensors
from nullspace_unlearn.train.task import Task
from nullspace_unlearn.trained import HOMES

METHODS: Mapping[str, type[TrainedMethod]] = {
    method.name: method
    for method in (
        getattr(importlib.import_module(module), name)
        for module, name in (home.split(":") for home in HOMES)
    )
}
"""Every trained method by the name the command line calls it."""

__all__ = [
    "METHODS",
    "Measured",
    "TrainedMethod",
    "Settings",
    "Shots",
    "Stage",
    "Task",
    "Trained",
    "configure",
    "from_source",
    "from_tensors",
    "train",
    "train_and_measure",
]


def configure(name: str, numbers: Mapping[str, str]) -> TrainedMethod:
    """Make a method from what a command line or a recipe says.

    Args:
        name: The method's name.
        numbers: Field -> value as text; what is left out keeps its default.

    Returns:
        The method.

    Raises:
        ValueError: If the name or a field is unknown, or a value is not of the field's type or is
            out of range.
    """
    if name not in METHODS:
        raise ValueError(
            f"unknown method {name!r}{did_you_mean(name, METHODS)}; known: {listed(METHODS)}"
        )
    method: Any = METHODS[name]
    types = typing.get_type_hints(method)
    fields = [field.name for field in dataclasses.fields(method)]
    values = {}
    for field, text in numbers.items():
        if field not in fields:
            raise ValueError(
                f"{name} has no number {field!r}{did_you_mean(field, fields)}; "
                f"it has: {listed(fields)}"
            )
        values[field] = _parse(f"{field} of {name}", types[field], text)
    made: TrainedMethod = method(**values)
    if made.epochs < 1 or made.batch_size < 1 or not 0 < made.lr < math.inf:
        raise ValueError(
            f"{name} needs at least 1 epoch and 1 image a step and a positive learning rate, got "
            f"{made.epochs}, {made.batch_size}, {made.lr:g}"
        )
    return made


def _parse(what: str, kind: Any, text: str) -> Any:
    if typing.get_origin(kind) is Literal:
        allowed = typing.get_args(kind)
        if text not in allowed:
            raise ValueError(f"{what} must be one of {listed(allowed)}, got {text!r}")
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"{what} must be true or false, got {text!r}")
        return text.lower() == "true"
    try:
        value = kind(text)
    except ValueError:
        raise ValueError(f"{what} must be a number ({kind.__name__}), got {text!r}") from None
    if not 0 <= value < math.inf:
        raise ValueError(f"{what} must be finite and not negative, got {text!r}")
    return value
