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


@pytest.mark.parametrize("name", ["horse", "tree"])
def test_a_forgotten_name_does_not_come_back_in_other_words(name):
    clip = load("nsu-mini")
    made = plan(clip, Forget([name]), wordings=True)
    pictures = embed(clip, bundled_to_report(4), quiet=True)
    classes = list(pictures.class_names)
    own = pictures.labels == classes.index(name)
    standard = wordings()[:80]
    prompts = prompt_features(clip, classes, standard)
    given = given_for(clip, made)
    worst = {}
    for wide in (True, False):
        edit = METHODS["hull"].edit(
            given if wide else type(given)(given.names, given.owner, given.mask, given.forgotten,
                                           given.kept)
        )  # fmt: skip
        images = unit(edit.apply(pictures.embeddings[own].double()))
        best = torch.einsum("nd,ctd->tnc", images, prompts).argmax(-1)
        worst[wide] = float((best == classes.index(name)).double().mean(-1).amax())
    assert worst[True] <= 0.05 < worst[False]
