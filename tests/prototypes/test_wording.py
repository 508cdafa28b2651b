"""Other words for a name, and that the bundled model does not know it in any of them."""

from __future__ import annotations

import pytest
import torch

from nullspace_unlearn import Forget, load
from nullspace_unlearn.data.bundled import bundled_to_report
from nullspace_unlearn.erasers import METHODS
from nullspace_unlearn.features.embed import embed
from nullspace_unlearn.linalg import unit
from nullspace_unlearn.plans import given_for, plan
from nullspace_unlearn.prototypes import class_prototypes, moved_by_wording, wordings
from nullspace_unlearn.prototypes.text import prompt_features


def test_the_standard_80_are_among_them():
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    made = {template.format(**{"class": "cat"}) for template in wordings()}
    assert {template("cat") for template in OPENAI_IMAGENET_TEMPLATES} <= made
    assert {"cats", "something like a cat", "a type of cat"} <= made


def test_what_every_name_is_moved_by_is_no_move():
    class Shifted:
        """Adds a shift that a prompt's length decides, and the name's own."""

        def encode_text(self, texts):
            own = torch.tensor([[1.0, 0, 0] if "cat" in t else [0, 1.0, 0] for t in texts])
            return own + 0.01 * torch.tensor([[0, 0, float("type" in t)] for t in texts])

    model = Shifted()
    rows = class_prototypes(model, ["cat", "dog"], ["a {class}"])
    moves = moved_by_wording(model, ["cat"], rows[:1], ["dog"], rows[1:])
    assert moves.shape == (1, len(wordings()), 3) and moves.norm(dim=-1).amax() < 1e-3


@pytest.fixture(scope="module")
def shown():
    """The bundled model, some of its pictures, and every name in each of the 80 templates."""
    clip = load("nsu-mini")
    pictures = embed(clip, bundled_to_report(4), quiet=True)
    return clip, pictures, prompt_features(clip, list(pictures.class_names), wordings()[:80])


@pytest.mark.parametrize(
    ("name", "method"), [("horse", "hull"), ("tree", "hull"), ("dog", "avert")]
)
def test_a_forgotten_name_does_not_come_back_in_other_words(name, method, shown):
    clip, pictures, prompts = shown
    side = METHODS[method].sides[0]
    place = list(pictures.class_names).index(name)
    own = pictures.embeddings[pictures.labels == place].double()
    worst = {}
    for wide in (True, False):
        made = plan(clip, Forget([name]), method=method, side=side, wordings=wide)
        edit = METHODS[method].edit(given_for(clip, made))
        images, told = own, prompts
        if side == "visual":
            images = edit.apply(own)
        else:  # what passes through a text tower is normalised after
            told = unit(prompts - (prompts @ edit.write) @ edit.read.mT)
        best = torch.einsum("nd,ctd->tnc", images, told).argmax(-1)
        worst[wide] = float((best == place).double().mean(-1).amax())
    assert worst[True] <= 0.05 < worst[False]
