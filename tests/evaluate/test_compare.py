"""Two models compared: by an edit's own features, by images encoded again, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import nullspace_unlearn as nsu
from nullspace_unlearn import Forget
from nullspace_unlearn.data.bundled import bundled_to_report
from nullspace_unlearn.evaluate.compare import (
    Lists,
    cells_of,
    compare,
    compare_models,
    compared,
    predicted,
)
from nullspace_unlearn.features.embed import embed
from nullspace_unlearn.prototypes import class_prototypes, from_images
from nullspace_unlearn.words import Words

TEMPLATES = Words().class_templates
CELL, EVERYWHERE = Forget(["car"], ["sketch"]), Forget(["car"])


@pytest.fixture(scope="module")
def clip():
    return nsu.load("nsu-mini", device="cpu")


@pytest.fixture(scope="module")
def pictures(clip):
    return embed(clip, bundled_to_report(2, 77), quiet=True)


def test_an_edit_and_the_model_it_makes_compare_alike(clip, pictures):
    edit = nsu.erase(clip, CELL)
    edited = edit.fold(clip)
    again = embed(edited, bundled_to_report(2, 77), quiet=True)
    first = compare(clip, edited, edit, "visual", pictures, CELL, TEMPLATES)
    second = compare_models(clip, edited, pictures, again, CELL, TEMPLATES)
    one, other = first.to_json(), second.to_json()
    assert one["figures"]["after"] == pytest.approx(other["figures"]["after"], abs=1e-6)
    for name in ("before", "after", "forgotten", "verdict", "images", "paid"):
        assert one[name] == other[name]
    assert second.figures["after"]["forgotten"] < second.figures["before"]["forgotten"]
    same = compare_models(clip, clip, pictures, pictures, CELL, TEMPLATES)  # control
    assert same.figures["after"] == same.figures["before"] != second.figures["after"]


def test_what_prototypes_predict_is_what_the_edited_model_makes_of_them(clip):
    """Of an edit of the last MLP too, which shows on no embedding: oracle, the folded model."""
    source = bundled_to_report(2, 78)
    visual = from_images(clip, source, shots=2, space="mlp", quiet=True)
    plan = nsu.plan(clip, CELL, method="neutral", images=True)
    edit = nsu.erase(clip, plan, visual=visual, space="mlp")
    edited = edit.fold(clip)
    found = predicted(clip, edited, edit, "visual", plan.forget, plan.words, visual)
    again = embed(edited, source, quiet=True)
    truth = compare_models(clip, edited, visual.features, again, plan.forget, TEMPLATES)
    assert found.figures["after"] == pytest.approx(truth.figures["after"], abs=0.02)
    assert found.figures["after"]["forgotten"] < found.figures["before"]["forgotten"]
    with pytest.raises(ValueError, match="encoded again"):
        predicted(clip, edited, edit, "visual", plan.forget, plan.words)


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


def test_text_that_the_features_bring_is_edited_on_the_text_side(clip, pictures):
    edit = nsu.erase(clip, EVERYWHERE, side="text")
    edited = edit.fold(clip, "text")
    text = class_prototypes(clip, pictures.class_names, TEMPLATES).float()
    own = replace(pictures, text=text)
    found = compare(clip, edited, edit, "text", own, EVERYWHERE, TEMPLATES)
    after = text - (text.double() @ edit.write @ edit.read.T).float()
    by_hand = compared(own, EVERYWHERE, (own.embeddings, text), (own.embeddings, after))
    assert found.figures["after"] == pytest.approx(by_hand.figures["after"], abs=1e-6)
    assert found.figures["after"]["forgotten"] < 0.5 < found.figures["before"]["forgotten"]
    encoded = compare(clip, edited, edit, "text", pictures, EVERYWHERE, TEMPLATES)
    assert encoded.figures["after"]["left"] == pytest.approx(
        found.figures["after"]["left"], abs=0.1
    )


def test_images_are_named_among_all_names_that_stay(clip, pictures):
    """Data that show some of the classes: the names of the others are listed too."""
    shown = ("car", "dog", "tree", "house", "flower")
    place = {pictures.class_names.index(name): i for i, name in enumerate(shown)}
    some = torch.tensor([int(label) in place for label in pictures.labels])
    five = replace(
        pictures, embeddings=pictures.embeddings[some], hidden=None, class_names=shown,
        labels=torch.tensor([place[int(one)] for one in pictures.labels[some]]),
        domains=pictures.domains[some],
    )  # fmt: skip
    plan = nsu.plan(clip, EVERYWHERE)
    edit = nsu.erase(clip, plan)
    given = (clip, edit.fold(clip), edit, "visual", five, plan.forget, TEMPLATES)
    alone = compare(*given)
    lists = Lists(stay=plan.keep)
    among = compare(*given, lists=lists)
    assert among.classes == shown and lists.rows(five)[1] == 12
    assert alone.measured.answers[1].asking.listed.sum() == 4
    assert among.measured.answers[1].asking.listed.sum() == 11
    assert among.figures["after"]["named_all"] == 0 < alone.figures["after"]["named_all"]
    assert among.figures["ideal"]["forgotten"] == 0
    said = among.to_json(20)
    assert said["images"] == {"forgotten": 8, "others": 32, "kept": 32}
    assert said["by_class"]["car"]["images"] == 8
    assert said["by_class"]["car"]["named_all"]["after"] == among.figures["after"]["named_all"]
    deployed = compare(*given, lists=Lists(plan.keep, ("car", "dog", "spaceship")))
    value = deployed.figures["after"]["named_deployed"]
    assert value is not None and among.figures["after"]["named_deployed"] is None
    assert deployed.figures["after"]["kept"] == among.figures["after"]["kept"]
    own = replace(five, text=class_prototypes(clip, shown, TEMPLATES).float())
    with pytest.raises(ValueError, match="'spaceship' is not among them"):
        Lists((), ("car", "spaceship")).rows(own)


def test_data_without_images_of_what_is_forgotten_show_the_rest(clip, pictures):
    some = (pictures.labels != pictures.class_names.index("car")) | (pictures.domains != 1)
    rest = replace(
        pictures, embeddings=pictures.embeddings[some], labels=pictures.labels[some], hidden=None,
        domains=pictures.domains[some],
    )  # fmt: skip
    domain = pictures.domain_names[1]
    edit = nsu.erase(clip, Forget(["car"], [domain]))
    found = compare(
        clip, edit.fold(clip), edit, "visual", rest, Forget(["car"], [domain]), TEMPLATES
    )
    assert found.verdict == "unknown" and found.found_by is None
    assert found.figures["after"]["left"] is found.figures["after"]["forgotten"] is None
    assert found.figures["after"]["kept"] > 0.8 and found.paid is not None
    assert found.images["forgotten"] == 0 and found.to_json(20)["by_class"] == {}
