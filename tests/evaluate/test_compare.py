"""Two models compared: by an edit's own features, by images encoded again, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import nullspace_unlearn as nsu
from nullspace_unlearn import Forget
from nullspace_unlearn.evaluate.compare import cells_of, compare, compare_models
from nullspace_unlearn.evaluate.pictures import embed_pictures
from nullspace_unlearn.prototypes import class_prototypes
from nullspace_unlearn.words import Words

TEMPLATES = Words().class_templates
CELL, EVERYWHERE = Forget(["car"], ["sketch"]), Forget(["car"])


@pytest.fixture(scope="module")
def clip():
    return nsu.load("nsu-mini", device="cpu")


@pytest.fixture(scope="module")
def pictures(clip):
    return embed_pictures(clip, each=2, seed=77, quiet=True)


def test_an_edit_and_the_model_it_makes_compare_alike(clip, pictures):
    edit = nsu.erase(clip, CELL)
    edited = edit.fold(clip)
    again = embed_pictures(edited, each=2, seed=77, quiet=True)
    first = compare(clip, edited, edit, "visual", pictures, CELL, TEMPLATES)
    second = compare_models(clip, edited, pictures, again, CELL, TEMPLATES)
    assert first.to_json() == second.to_json()
    assert second.figures["after"]["forgotten"] < second.figures["before"]["forgotten"]
    same = compare_models(clip, clip, pictures, pictures, CELL, TEMPLATES)  # control
    assert same.figures["after"] == same.figures["before"] != second.figures["after"]


def test_each_model_has_its_own_text_tower(clip, pictures):
    edited = nsu.erase(clip, EVERYWHERE, side="text").fold(clip, "text")
    found = compare_models(clip, edited, pictures, pictures, EVERYWHERE, TEMPLATES)
    for model, grid in ((clip, found.before), (edited, found.after)):
        text = class_prototypes(model, pictures.class_names, TEMPLATES).float()
        right = torch.zeros(12, 4)
        for z, c, d in zip(pictures.embeddings, pictures.labels, pictures.domains, strict=True):
            scores = [float(z @ row / row.norm()) for row in text]
            right[c, d] += scores.index(max(scores)) == c
        assert torch.equal(grid.accuracy.float(), right / 2)
    assert found.figures["after"]["forgotten"] < 0.5 < found.figures["before"]["forgotten"]


def test_other_images_are_refused(clip, pictures):
    order = torch.arange(len(pictures)).flip(0)
    turned = replace(pictures, embeddings=pictures.embeddings[order], labels=pictures.labels[order],
                     domains=pictures.domains[order])  # fmt: skip
    renamed = replace(pictures, domain_names=("a", "b", "c", "d"))
    moved = replace(pictures, domains=pictures.domains.flip(0))
    for other in (turned, renamed, moved):
        with pytest.raises(ValueError, match="not of the same images"):
            compare_models(clip, clip, pictures, other, CELL, TEMPLATES)


def test_the_cells_of_data_that_lack_some():
    classes, domains = ("dog", "car"), ("sketch", "photo")
    assert cells_of(Forget(["car", "bus"], ["sketch"]), classes, domains).tolist() == [
        [False, False],
        [True, False],
    ]
    assert cells_of(EVERYWHERE, classes, ()).tolist() == [[False], [True]]
    for forget, names, message in (
        (Forget(["bus"]), domains, "unknown class 'bus'"),
        (CELL, ("photo",), "unknown domain 'sketch'"),
        (CELL, (), "names no domains"),
    ):
        with pytest.raises(ValueError, match=message):
            cells_of(forget, classes, names)
