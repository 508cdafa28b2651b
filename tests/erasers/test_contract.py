"""What every eraser of the table promises, whatever its mathematics; a new one inherits it.

Oracles: the same request by itself, the same problem scaled, turned or written otherwise, and the
edit that `erase` makes. Each has its control: a change that must show, shows.
"""

from __future__ import annotations

import itertools
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import nullspace_unlearn as nsu
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data.bundled import bundled_to_report
from nullspace_unlearn.edit import Edit
from nullspace_unlearn.erasers import METHODS, Given, Method, Seen
from nullspace_unlearn.evaluate.compare import classifier
from nullspace_unlearn.evaluate.sweep import Run, Sweep, swept
from nullspace_unlearn.features import Features
from nullspace_unlearn.features.embed import embed
from nullspace_unlearn.forget import Forget, Paradigm
from nullspace_unlearn.linalg import unit
from nullspace_unlearn.plans import resolved, texts_of

CLASSES, DOMAINS, DIM, WIDTH, EACH = 7, 3, 40, 48, 3
HEADS = 2
DEEP = ("hidden", "mlp", "value")
OWNER = (*range(CLASSES), 0, 0, 1)  # two further names of the first class, one of the second
# Its terms are weighed against the identity, so unit vectors are part of what it is.
NEEDS_UNIT_NAMES = {"ccup"}


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def requests(paradigm: Paradigm) -> Tensor:
    """`[4, classes, domains]`, of different sizes."""
    mask = torch.zeros(4, CLASSES, DOMAINS, dtype=torch.bool)
    for i, classes in enumerate(((0,), (1, 4), (2,), (0, 1, 3))):
        if paradigm == "global":
            mask[i, list(classes)] = True
        elif paradigm == "cell":
            mask[i, list(classes), i % DOMAINS] = True
        else:
            mask[i, :, i % DOMAINS] = True
    return mask


def given_of(paradigm: Paradigm, images: bool, space: str = "embedding") -> Given:
    """A world in which names, cells and images lean to their class and domain."""
    owner = torch.tensor(OWNER)
    classes, styles = randn(CLASSES, DIM, seed=1), 0.7 * randn(DOMAINS, DIM, seed=2)
    names = unit(classes[owner] + 0.4 * randn(len(OWNER), DIM, seed=3) + 0.5)
    cells = unit(names[:, None] + 0.2 * styles + 0.02 * randn(len(OWNER), DOMAINS, DIM, seed=4))
    mask = requests(paradigm)
    gone = mask.any(-1)
    forgotten = gone[:, owner]
    if paradigm == "domain":  # no class is named, so no other name of one is
        forgotten[:, CLASSES:] = False
    kept = ~gone[:, owner]
    kept[:, CLASSES:] = False
    seen = None
    if images:
        grid = torch.ones(CLASSES, DOMAINS, EACH).nonzero()
        rows = classes[grid[:, 0]] + styles[grid[:, 1]] + 0.3 * randn(len(grid), DIM, seed=5)
        seen = Seen(
            rows, grid[:, 0], grid[:, 1], "pictures",
            hidden=rows @ randn(DIM, WIDTH, seed=6) + 0.1 * randn(len(grid), WIDTH, seed=7),
            mlp=rows @ randn(DIM, WIDTH, seed=8) + 0.1 * randn(len(grid), WIDTH, seed=9),
            value=rows @ randn(DIM, HEADS * WIDTH, seed=12)
            + 0.1 * randn(len(grid), HEADS * WIDTH, seed=13),
            bases=torch.linalg.qr(randn(HEADS, DIM, DIM // 2, seed=14)).Q,
        )  # fmt: skip
    everywhere = paradigm == "global"
    return Given(names, owner, mask, forgotten, kept, None if everywhere else cells, seen, space)


def cases() -> list[Any]:
    found = []
    for method, shown in itertools.product(METHODS.values(), (False, True)):
        if (shown and method.images == "none") or (not shown and method.images == "must"):
            continue
        for paradigm, space in itertools.product(method.paradigms, method.spaces):
            if space == "embedding" or shown:
                said = f"{method.name}-{paradigm}-{space}-{'images' if shown else 'text'}"
                found.append(pytest.param(method, given_of(paradigm, shown, space), id=said))
    return found


every = pytest.mark.parametrize(("method", "given"), cases())


def update(edit: Edit) -> Tensor:
    """What an edit takes away, as one matrix: no basis in it is a matter of choice."""
    if edit.space == "value":  # a head has no part in another
        read, write = (part.unflatten(-2, (HEADS, -1)) for part in (edit.read, edit.write))
        return (read @ write.mT).flatten(-3, -2)
    return edit.read @ edit.write.mT


def close(one: Edit, other: Edit, tol: float = 1e-7) -> None:
    scale = float(update(other).abs().amax())
    torch.testing.assert_close(update(one), update(other), atol=tol * scale, rtol=tol)


@every
def test_a_batch_is_the_loop(method: Method[Any], given: Given) -> None:
    batch = method.edit(given)
    assert batch.batch_shape == (4,) and batch.read.dtype == torch.float64
    square = {
        name: getattr(given, name).unflatten(0, (2, 2)) for name in ("mask", "forgotten", "kept")
    }
    nested = method.edit(replace(given, **square))
    assert nested.batch_shape == (2, 2)
    for i in range(4):
        one = method.edit(given[i])
        assert one.batch_shape == ()
        close(batch[i], one)
        close(nested[i // 2, i % 2], one)
    # The control: requests do differ.
    assert not torch.allclose(update(batch[0]), update(batch[1]), atol=1e-3)


@every
def test_other_names_count(method: Method[Any], given: Given) -> None:
    one = given[0]  # of the first class, which has two further names
    bare = replace(one, forgotten=one.forgotten & (torch.arange(len(OWNER)) < CLASSES))
    prompts = method.prompts_beside_images or one.everywhere or one.seen is None
    if bool((bare.forgotten == one.forgotten).all()) or not prompts:
        pytest.skip("no further name is named, or none is read")
    with_names, without = method.edit(one), method.edit(bare)
    assert not torch.allclose(update(with_names), update(without), atol=1e-4)
    # The control: names that no request lists are as though they were not there.
    used = bare.forgotten | bare.kept
    close(without, method.edit(bare.of_names(used)))


@every
def test_what_is_neither_forgotten_nor_kept_is_not_there(method: Method[Any], given: Given) -> None:
    near = given.kept.clone()
    near[:, CLASSES - 1] = False
    mask = given.mask.clone()
    mask[:, CLASSES - 1] = False
    forgotten = given.forgotten.clone()
    forgotten[:, CLASSES - 1] = False
    if not given.everywhere and given.mask[0].all(0).any():
        pytest.skip("every class takes part in a whole domain")
    among = replace(given, kept=near, mask=mask, forgotten=forgotten)[0]
    absent = among.of_names(among.forgotten | among.kept)
    close(method.edit(among), method.edit(absent))


@every
def test_half_precision_in_and_double_out(method: Method[Any], given: Given) -> None:
    def cast(value: Tensor | None, *to: torch.dtype) -> Tensor | None:
        for dtype in () if value is None else to:
            value = value.to(dtype)
        return value

    def at(*to: torch.dtype) -> Given:
        seen = given.seen
        if seen is not None:
            parts = {n: cast(getattr(seen, n), *to) for n in ("embeddings", *DEEP)}
            seen = replace(seen, **parts)
        parts = {name: cast(getattr(given, name), *to) for name in ("names", "cells")}
        return replace(given, **parts, seen=seen)

    half = method.edit(at(torch.float16))
    assert half.read.dtype == half.write.dtype == torch.float64
    close(half, method.edit(at(torch.float16, torch.float64)))


@every
def test_scale_does_not_matter(method: Method[Any], given: Given) -> None:
    expected = method.edit(given)
    seen = given.seen
    for scale in (1e-3, 1e3):
        if seen is not None:
            scaled = replace(
                seen, embeddings=scale * seen.embeddings, hidden=scale * seen.hidden,
                mlp=scale * seen.mlp, value=scale * seen.value,
            )  # fmt: skip
            close(method.edit(replace(given, seen=scaled)), expected, 1e-5)
        names, cells = scale * given.names, given.cells
        larger = replace(given, names=names, cells=None if cells is None else scale * cells)
        if method.name in NEEDS_UNIT_NAMES:
            assert not torch.allclose(update(method.edit(larger)), update(expected), atol=1e-3)
        else:
            close(method.edit(larger), expected, 1e-5)


@every
def test_turning_the_space_turns_the_edit(method: Method[Any], given: Given) -> None:
    turn = torch.linalg.qr(randn(DIM, DIM, seed=11)).Q
    seen = given.seen
    if seen is not None:
        seen = replace(seen, embeddings=seen.embeddings @ turn, bases=turn.mT @ seen.bases)
    cells = None if given.cells is None else given.cells @ turn
    turned = method.edit(replace(given, names=given.names @ turn, cells=cells, seen=seen))
    plain = method.edit(given)
    read = plain.read if given.space != "embedding" else turn.mT @ plain.read
    write = turn.mT @ plain.write.unflatten(-2, (-1, DIM))
    close(turned, replace(plain, read=read, write=write.flatten(-3, -2)), 1e-5)


@every
def test_the_provenance_makes_the_edit_again(method: Method[Any], given: Given) -> None:
    for one in (given[0], given[3]):
        edit = method.edit(one)
        assert edit.provenance["method"] == method.name
        own = {field.name for field in fields(method.numbers)}
        said = edit.provenance["numbers"]
        assert own <= set(said) and said["rank"] == edit.rank
        again = method.edit(one, {name: said[name] for name in own})
        close(again, edit, 1e-12)


@every
def test_what_it_refuses(method: Method[Any], given: Given) -> None:
    one = given[0]
    with pytest.raises(ValueError, match=f"{method.name} has no number 'magic'"):
        method.edit(one, {"magic": 1.0})
    broken = one.names.clone()
    broken[0] = torch.nan
    cells = None if one.cells is None else one.cells * torch.nan
    seen = one.seen
    if seen is not None:
        seen = replace(seen, **{n: getattr(seen, n) * torch.nan for n in ("embeddings", *DEEP)})
    with pytest.raises(ValueError, match="NaN"):
        method.edit(replace(one, names=broken, cells=cells, seen=seen))
    for space in set(DEEP) - set(method.spaces):
        with pytest.raises(ValueError, match=f"{method.name} reads .*, not {space}"):
            method.edit(replace(one, space=space))
    if method.images == "must":
        with pytest.raises(ValueError, match="give visual prototypes"):
            method.edit(replace(one, seen=None))
    everything = replace(
        one, mask=torch.ones_like(one.mask), kept=torch.zeros_like(one.kept),
        forgotten=torch.arange(len(OWNER)) < CLASSES,
    )  # fmt: skip
    with pytest.raises(ValueError):
        method.edit(everything)
    method.edit(one)  # the control


# A sweep against erase.


@pytest.fixture(scope="module")
def bundled() -> tuple[Clip, Features]:
    clip = nsu.load("nsu-mini")
    return clip, embed(clip, bundled_to_report(1), quiet=True)


@pytest.mark.parametrize("method", swept())
def test_a_sweep_makes_the_edit_that_erase_makes(
    method: str, bundled: tuple[Clip, Features], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As operators: figures of a few images say little. The bundled model's words bring aliases."""
    clip, features = bundled
    words = clip.words
    asked = [
        one
        for one in (
            Forget(["car"]),
            Forget(["flower", "dog"]),
            Forget(["cup"]),
            Forget(["car"], ["sketch"]),
            Forget(["dog", "car"], ["photo"]),
            Forget(domains=["painting"]),
        )  # fmt: skip
        if one.paradigm in METHODS[method].paradigms and set(one.classes) <= set(words.classes)
    ]
    known = tuple(resolved(one, words) for one in asked)
    assert any(one.aliases for one in known) or all(not one.classes for one in known)
    made: dict[int, Edit] = {}
    derive = Run._derive

    def watched(self: Run, chunk: Any, some: tuple[int, ...]) -> Any:
        edit, refused = derive(self, chunk, some)
        taken = [i for i in some if i not in refused]
        made.update({i: edit[b] for b, i in enumerate(taken)})
        return edit, refused

    monkeypatch.setattr(Run, "_derive", watched)
    texts = texts_of(clip, features.class_names, known, words)
    named_by = classifier(clip, features, words.class_templates)
    list(Run(Sweep(known, (method,)), features, named_by, texts).measure(quiet=True))
    assert set(made) == set(range(len(known)))
    for i, one in enumerate(asked):
        edit = nsu.erase(clip, one, method=method, classes=words.classes, wordings=False)
        close(made[i], edit, 1e-6)
    assert not torch.allclose(update(made[0]), update(made[1]), atol=1e-3)  # the control
