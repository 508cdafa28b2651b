"""Numbers from text: each takes its field's type, and what is wrong is said in words."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest

from nullspace_unlearn.forget import Paradigm
from nullspace_unlearn.train import METHODS, configure
from nullspace_unlearn.train.method import Stages
from nullspace_unlearn.train.plain import MemoriseForget
from nullspace_unlearn.train.task import Task


def test_what_is_left_out_keeps_its_default() -> None:
    for name, method in METHODS.items():
        assert configure(name, {}) == method()
        assert method.name == name and method.paper and set(method.paradigms)


def test_text_becomes_the_type_of_the_field() -> None:
    text = {"epochs": "7", "lr": "1e-3", "forget": "0", "towers": "both"}
    made = configure("memorise_forget", text)
    assert made == MemoriseForget(epochs=7, lr=1e-3, forget=0.0, towers="both")
    assert isinstance(made.epochs, int) and isinstance(made.lr, float)
    assert made != configure("memorise_forget", {})  # control


def test_every_number_can_be_given_as_text() -> None:
    for name, method in METHODS.items():
        default = method()
        said = {f.name: str(getattr(default, f.name)) for f in dataclasses.fields(method)}  # type: ignore[arg-type]
        assert configure(name, said) == default


@pytest.mark.parametrize(
    "name, numbers, message",
    [
        ("ascend", {}, r"unknown method 'ascend' \(did you mean 'ascent'\?\); known: .*finetune"),
        ("zzz", {}, "unknown method 'zzz'; known: "),
        ("ascent", {"epoch": "3"}, r"no number 'epoch' \(did you mean 'epochs'\?\); it has: epoch"),
        ("ascent", {"name": "x"}, "ascent has no number 'name'"),
        ("ascent", {"paper": "x"}, "ascent has no number 'paper'"),
        ("ascent", {"epochs": "1.5"}, r"epochs of ascent must be a number \(int\), got '1.5'"),
        ("ascent", {"epochs": ""}, r"must be a number \(int\), got ''"),
        ("ascent", {"lr": "fast"}, r"lr of ascent must be a number \(float\), got 'fast'"),
        ("ascent", {"lr": "nan"}, "lr of ascent must be finite and not negative, got 'nan'"),
        ("ascent", {"lr": "inf"}, "must be finite and not negative, got 'inf'"),
        ("ascent", {"lr": "-1"}, "must be finite and not negative, got '-1'"),
        ("ascent", {"lr": "0"}, "a positive learning rate, got 6, 32, 0"),
        ("ascent", {"epochs": "0"}, "needs at least 1 epoch .* got 0, 32, 0.0001"),
        ("ascent", {"batch_size": "0"}, "1 image a step .* got 6, 0, 0.0001"),
        ("ascent", {"towers": "all"}, "must be one of visual, text, both, got 'all'"),
    ],
)
def test_what_is_wrong_is_said(name: str, numbers: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configure(name, numbers)


def test_a_number_no_float_can_hold_is_no_crash() -> None:
    """An integer of 400 digits is finite; `math.isfinite` would overflow on it."""
    assert configure("ascent", {"batch_size": "1" + "0" * 400}).batch_size == 10**400


@dataclasses.dataclass(frozen=True)
class Switched:
    align: bool = True
    epochs: int = 1
    lr: float = 1.0
    batch_size: int = 1
    name: ClassVar[str] = "switched"
    paper: ClassVar[str] = "none"
    paradigms: ClassVar[tuple[Paradigm, ...]] = ("global",)
    sees_images: ClassVar[bool] = True

    def stages(self, task: Task) -> Stages:
        raise NotImplementedError


@pytest.mark.parametrize("text, value", [("true", True), ("False", False), ("TRUE", True)])
def test_yes_and_no(text: str, value: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nullspace_unlearn.train.METHODS", {"switched": Switched})
    assert configure("switched", {"align": text}).align is value  # type: ignore[attr-defined]
    for wrong in ("1", "yes", ""):
        with pytest.raises(ValueError, match="align of switched must be true or false"):
            configure("switched", {"align": wrong})
