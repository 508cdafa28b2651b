"""`Forget`: the request and its grid."""

from __future__ import annotations

import json

import pytest

from nullspace_unlearn.forget import Forget

CLASSES, DOMAINS = ("car", "dog", "cat"), ("photo", "sketch")


@pytest.mark.parametrize(
    "request_, paradigm, grid",
    [
        (Forget(classes=("car",)), "global", [[1, 1], [0, 0], [0, 0]]),
        (Forget(classes=("cat", "car")), "global", [[1, 1], [0, 0], [1, 1]]),
        (Forget(classes=("car",), domains=("sketch",)), "cell", [[0, 1], [0, 0], [0, 0]]),
        (Forget(domains=("sketch",)), "domain", [[0, 1], [0, 1], [0, 1]]),
    ],
)
def test_the_grid_of_each_paradigm(request_: Forget, paradigm: str, grid: list[list[int]]) -> None:
    assert request_.paradigm == paradigm
    assert request_.mask(CLASSES, DOMAINS).int().tolist() == grid


def test_the_grid_follows_the_given_order() -> None:
    request = Forget(classes=("car",), domains=("sketch",))
    assert request.mask(CLASSES[::-1], DOMAINS[::-1]).int().tolist() == [[0, 0], [0, 0], [1, 0]]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "nothing to forget"),
        ({"keep": ("dog",)}, "nothing to forget"),
        ({"classes": "car"}, "must be a list of names, got the string 'car'"),
        ({"domains": "sketch"}, "must be a list of names"),
        ({"classes": ("car", "car ")}, "named twice"),
        ({"domains": ("sketch", "sketch")}, "domain named twice"),
        ({"classes": ("",)}, "empty class name"),
        ({"domains": (" ",)}, "empty domain name"),
        ({"classes": ("car",), "keep": ("Car",)}, "both forgotten and kept"),
        ({"classes": ("car",), "keep": ("auto",), "aliases": {"car": ("auto",)}}, "both forgotten"),
        ({"classes": ("car",), "aliases": {"dog": ("hound",)}}, "alias given for 'dog'.*car"),
    ],
)
def test_what_is_no_request(unchecked, arguments: dict, message: str) -> None:
    with unchecked(), pytest.raises(ValueError, match=message):
        Forget(**arguments)


@pytest.mark.parametrize(
    "request_, message",
    [
        (Forget(classes=("horse",)), "unknown class 'horse'; known: car, dog, cat"),
        (Forget(domains=("clipart",)), "unknown domain 'clipart'; known: photo, sketch"),
    ],
)
def test_an_unknown_name_is_answered_with_the_known_ones(request_: Forget, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        request_.mask(CLASSES, DOMAINS)


def test_aliases_are_forgotten_too() -> None:
    request = Forget(classes=("car", "dog"), aliases={"car": ("auto", "motorcar")})
    assert request.names == ("car", "dog", "auto", "motorcar")
    with pytest.raises(TypeError):
        request.aliases["dog"] = ("hound",)  # type: ignore[index]


def test_json_round_trip() -> None:
    request = Forget(("car",), ("sketch",), ("dog",), {"car": ("auto",)})
    assert Forget(**json.loads(json.dumps(request.to_json()))) == request
