"""Prototypes: normalise, mean, normalise; each distinct prompt encoded once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from nullspace_unlearn.clip import Clip, load
from nullspace_unlearn.data.mini import render
from nullspace_unlearn.prototypes import (
    DOMAIN_WORDS,
    cell_prototypes,
    class_prototypes,
    imagenet_names,
    names_that_fit,
    near_synonyms,
    prompt_features,
    templates_that_fit,
)
from nullspace_unlearn.prototypes.text import hardly_told, taken_for

DIM = 7
NAMES = ("car", "dog", "tea pot")
TEMPLATES = ("a {class}.", "the {class}", "{class}: {class} once")


class Encoder:
    """One random vector of random length a prompt."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.calls: list[list[str]] = []
        self.known: dict[str, np.ndarray] = {}
        self.dtype = dtype

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        self.calls.append(list(texts))
        random = np.random.default_rng(len(self.known))
        for text in texts:
            if text not in self.known:
                self.known[text] = random.normal(size=DIM) * random.uniform(0.1, 30)
        return torch.from_numpy(np.stack([self.known[text] for text in texts])).to(self.dtype)


def by_hand(encoder: Encoder, prompts: list[str]) -> np.ndarray:
    total = np.zeros(DIM)
    for prompt in prompts:
        vector = encoder.known[prompt].astype(np.float32).astype(np.float64)
        total += vector / np.sqrt((vector**2).sum())
    return total / np.sqrt((total**2).sum())


def test_a_class_is_normalised_averaged_and_normalised():
    encoder = Encoder()
    rows = class_prototypes(encoder, NAMES, TEMPLATES)
    assert rows.shape == (3, DIM) and rows.dtype == torch.float64
    plain = []
    for name, row in zip(NAMES, rows.numpy(), strict=True):
        prompts = [f"a {name}.", f"the {name}", f"{name}: {name} once"]
        np.testing.assert_allclose(row, by_hand(encoder, prompts), rtol=1e-12)
        mean = np.mean([encoder.known[prompt] for prompt in prompts], 0)
        plain.append(mean / np.linalg.norm(mean))
    assert not np.allclose(rows.numpy(), plain, rtol=1e-2)  # control: lengths must not weigh


def test_a_cell_names_its_domain():
    encoder = Encoder()
    templates = ("a {domain} of a {class}.", "{class}, {domain}")
    cells = cell_prototypes(encoder, NAMES, ("photo", "oil painting"), templates)
    assert cells.shape == (3, 2, DIM) and cells.dtype == torch.float64
    for c, name in enumerate(NAMES):
        for d, word in enumerate(("photo", "oil painting")):
            expected = by_hand(encoder, [f"a {word} of a {name}.", f"{name}, {word}"])
            np.testing.assert_allclose(cells[c, d].numpy(), expected, rtol=1e-12)


def test_each_distinct_prompt_is_encoded_once():
    encoder = Encoder()
    names, templates = ("car", "dog", "car"), ("a {class}.", "a {class}.", "my {class}.")
    features = prompt_features(encoder, names, templates)
    assert encoder.calls == [["a car.", "my car.", "a dog.", "my dog."]]
    assert features.shape == (3, 3, DIM)
    assert torch.equal(features[0], features[2]) and torch.equal(features[:, 0], features[:, 1])
    assert not torch.equal(features[0], features[1])
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(3, 3, dtype=torch.float64))
    # A template given twice weighs twice.
    weighed = by_hand(encoder, ["a car.", "a car.", "my car."])
    rows = class_prototypes(encoder, ("car",), templates)
    np.testing.assert_allclose(rows[0].numpy(), weighed, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_whatever_precision_the_tower_has_prototypes_are_float64_units(dtype):
    rows = class_prototypes(Encoder(dtype), NAMES, TEMPLATES)
    assert rows.dtype == torch.float64
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_text_tower_is_named(bad):
    encoder = Encoder()
    class_prototypes(encoder, NAMES, TEMPLATES)  # control
    encoder.known["the dog"][3] = bad
    with pytest.raises(ValueError, match="text features"):
        class_prototypes(encoder, NAMES, TEMPLATES)


def test_names_with_braces_are_only_names():
    encoder = Encoder()
    class_prototypes(encoder, ("{x} {", "{0}"), ("a {class}.",))
    assert encoder.calls == [["a {x} {.", "a {0}."]]


def test_imagenet_names_are_unique_and_in_order():
    from open_clip import IMAGENET_CLASSNAMES

    names = imagenet_names()
    assert len({name.casefold() for name in names}) == len(names)
    assert {name.casefold() for name in names} == {n.casefold() for n in IMAGENET_CLASSNAMES}
    assert len(names) < len(IMAGENET_CLASSNAMES) == 1000  # two classes share a name
    assert set(names) <= set(IMAGENET_CLASSNAMES)
    assert names[:3] == tuple(IMAGENET_CLASSNAMES[:3])
    assert len(set(DOMAIN_WORDS)) == len(DOMAIN_WORDS) == 4


def test_near_synonyms_by_the_rule_in_plain_numpy():
    random = np.random.default_rng(0)
    names = random.normal(size=(60, DIM)) + 1.5  # all names share a direction, as CLIP's do
    forget = names[:2] + random.normal(size=(2, DIM)) * 0.1
    rows = names / np.linalg.norm(names, axis=1, keepdims=True)
    gone = forget / np.linalg.norm(forget, axis=1, keepdims=True)
    typical = np.mean([1 - a @ b for a in rows for b in rows])
    expected = [min(1 - row @ g for g in gone) < typical / 4 for row in rows]
    found = near_synonyms(torch.from_numpy(forget), torch.from_numpy(names))
    assert found.tolist() == expected
    assert expected[:2] == [True, True] and 2 <= sum(expected) < 40
    scaled = near_synonyms(torch.from_numpy(5 * forget), torch.from_numpy(names) / 3)
    assert scaled.tolist() == expected  # lengths do not matter


LONG = "the very long name of a thing that has twenty words and more of them"


@pytest.fixture(scope="module")
def mini() -> Clip:
    return load("nsu-mini", device="cpu")


@pytest.mark.parametrize(
    ("names", "template", "domain"),
    [
        ((f"{LONG} dog", f"{LONG} cat"), "a {class}.", None),
        (("dog", "cat"), LONG + " {class}", None),
        (("dog", "cat"), "{class} in the style of " + LONG + " {domain}", "sketch"),
        (("dog", f"{LONG} cat"), "a {class} {{once}}.", None),
    ],
)
def test_a_name_that_the_context_cuts_is_refused(mini: Clip, names, template, domain) -> None:
    """Two such names would be one vector: the oracle."""
    words = {} if domain is None else {"domain": domain}
    prompts = [template.format(**{"class": name}, **words) for name in names]
    with pytest.raises(ValueError, match=r"reads 16 tokens, and prompt '.*' is cut before '.*'"):
        prompt_features(mini, names, (template,), domain)
    if names[0] != "dog" or domain is None and template.startswith(LONG):
        assert torch.equal(*mini.encode_text(prompts))
    assert not torch.equal(*mini.encode_text(["a dog.", "a cat."]))  # the control


def test_a_tail_that_the_context_cuts_is_said(mini: Clip) -> None:
    with pytest.warns(UserWarning, match="reads 16 tokens: the end of 'a dog .* and of 1 other pr"):
        rows = prompt_features(mini, ("dog", "cat"), ("a {class} in " + LONG,))
    assert not torch.allclose(rows[0], rows[1], atol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prompt_features(mini, ("dog", "cat"), ("a photo of a {class}.",))  # the control


def test_the_names_that_fit_are_those_that_are_not_refused(mini: Clip) -> None:
    names = ("dog", f"{LONG} cat", "tea pot", LONG)
    templates = ("a photo of a {class}.", "{class} in " + LONG)
    assert names_that_fit(mini, names, templates) == ("dog", "tea pot")
    assert names_that_fit(mini, names, (LONG + " {class}",)) == ()
    assert names_that_fit(mini, names, ("{class}, {domain}",), LONG) == ()
    assert templates_that_fit(mini, ("dog", "cat"), (*templates, LONG + " {class}")) == templates


def test_a_misspelt_domain_is_hardly_told_from_others():
    clip = load("nsu-mini", device="cpu")
    words = clip.words
    given = (clip, words.classes)
    right = ("photo", "sketch", "painting", "cartoon")
    assert hardly_told(cell_prototypes(*given, right, words.cell_templates)) == []
    wrong = ("photo", "skech", "painting", "cartoon")
    found = hardly_told(cell_prototypes(*given, wrong, words.cell_templates))
    assert (1, 0) in found and len(found) <= 2
    assert hardly_told(cell_prototypes(*given, wrong[:2], words.cell_templates)) == []


def test_images_of_a_swapped_folder_are_taken_for_the_other_domain(mini):
    names, domains = ("car", "dog", "tree"), tuple(DOMAIN_WORDS)
    pictures = [render(c, d, 9_200_000 + i) for c in names for d in domains for i in range(2)]
    embeddings = mini.encode_image(torch.stack([mini.preprocess(one) for one in pictures]))
    where = torch.arange(len(pictures)) // 2
    labels, own = where // len(domains), where % len(domains)
    assert mini.words is not None
    cells = cell_prototypes(mini, names, domains, mini.words.cell_templates)
    assert taken_for(embeddings, labels, own, cells) == []
    swapped = torch.tensor([1, 0, *range(2, len(domains))])[own]
    assert taken_for(embeddings, labels, swapped, cells) == [(0, 1), (1, 0)]
