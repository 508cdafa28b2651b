"""Each attack finds what was planted, and nothing where nothing is."""

from __future__ import annotations

from dataclasses import replace

import planted
import pytest
import torch

import nullspace_unlearn as nsu
from nullspace_unlearn import Forget
from nullspace_unlearn.audit import case as case_of_views
from nullspace_unlearn.audit import names
from nullspace_unlearn.audit.attacks import QUESTIONS
from nullspace_unlearn.audit.case import Elsewhere, View
from nullspace_unlearn.audit.question import (
    FORGOTTEN,
    KEPT,
    NAME_ONLY,
    NOT_FORGOTTEN,
    NOT_KEPT,
    NOT_MEASURED,
    OVER_FORGOTTEN,
    recoverable,
)
from nullspace_unlearn.audit.search import _examples
from nullspace_unlearn.evaluate.asking import Asking

ASK = {question.name: question.answer for question in QUESTIONS}


def verdicts(case, *names):
    return tuple(ASK[name](case).verdict for name in names)


@pytest.mark.parametrize("cells", ["everywhere", "sketch"])
def test_an_untouched_model_has_forgotten_nothing(cells):
    case = planted.case(planted.original(), cells=cells)
    found = verdicts(case, "yardstick", "names", "search", "collateral")
    assert found == (NOT_FORGOTTEN, NOT_FORGOTTEN, NOT_FORGOTTEN, KEPT)
    left = ASK["yardstick"](case).findings[0]
    assert left.name == "left" and left.values["edited"] == left.values["original"] == 1


def test_a_model_that_never_saw_it_is_as_never_seen():
    case = planted.case(planted.never_seen(1), planted.never_seen(2))
    assert verdicts(case, "search", "over-forgetting")[0] == FORGOTTEN
    assert ASK["yardstick"](case).findings[0].values["edited"] < 0.3  # 24 images scatter
    one = ASK["search"](case).findings[-1]
    assert one.name == "found_by_image"
    assert one.values["edited"] == pytest.approx(one.values["chance"], abs=0.1)
    assert one.values["original"] > 0.9  # control


def test_a_projection_of_zeros_tells_nothing_and_keeps_nothing():
    case = planted.case(planted.zero())
    found = verdicts(case, "yardstick", "names", "search", "collateral")
    assert found == (FORGOTTEN, FORGOTTEN, FORGOTTEN, NOT_KEPT)


def test_a_name_struck_off_lists_is_found_by_search():
    case = planted.case(planted.struck_off())
    assert verdicts(case, "names", "search") == (FORGOTTEN, NAME_ONLY)
    assert ASK["yardstick"](case).verdict == NOT_FORGOTTEN


def test_a_decoy_is_found_by_short_lists():
    case = planted.case(planted.decoy())
    answer = ASK["names"](case)
    by_length = answer.curves[0]
    edited, lengths = by_length.lines["edited"], by_length.x
    assert lengths == (2, 3, 4, 5, 6)
    assert edited[-1] == 0 and edited[0] == pytest.approx(4 / 5)  # 1 of 5 names is the decoy
    assert by_length.lines["original"] == (1, 1, 1, 1, 1)
    assert answer.verdict == NOT_FORGOTTEN and "2 names" in answer.sentence


SECRETS = {
    "template": "a sculpture of a {class}.",
    "paraphrase": "this is a {class}",
    "capitals": "A PHOTO OF A {class}",
    "negation": "not a {class}",
    "composed": "a {class} beside a truck",
    "synonym": "auto",
    "plural": "cars",
    "narrower": "coupe",
    "wider": "vehicle",
    "misspelling": "caar",
    "alias": "automobile",
}


@pytest.fixture(scope="module")
def clip():
    """Any model: what its text tower says is planted."""
    return nsu.load("nsu-mini")


@pytest.mark.parametrize("kind", [None, *SECRETS])
def test_one_phrasing_that_still_tells_is_found(kind, clip, monkeypatch):
    """The name says nothing, one phrasing of it all: a text tower that is told which."""
    whole, blind = planted.original().text, planted.nameless(planted.original()).text
    secret = SECRETS.get(kind)

    def prompts(model, classes, templates):
        told = torch.stack([whole if one == secret else blind for one in templates], 1)
        return torch.nn.functional.normalize(told, dim=-1)

    def prototypes(model, classes, templates):
        return (whole if classes == [secret] else blind)[:1]

    words = {one: [SECRETS[one]] for one in ("synonym", "plural", "narrower", "wider")}
    monkeypatch.setattr(case_of_views, "prompt_features", prompts)
    monkeypatch.setattr(names, "class_prototypes", prototypes)
    monkeypatch.setattr(names, "names_that_fit", lambda model, texts, templates: tuple(texts))
    monkeypatch.setattr(names, "templates_that_fit", lambda model, some, templates: templates)
    monkeypatch.setattr(names, "related", lambda name: words)
    monkeypatch.setattr(names, "misspelt", lambda name, generator: (SECRETS["misspelling"],))
    edited = replace(planted.original(), text=blind)
    asked = Forget(["car"], aliases={"car": (SECRETS["alias"],)})
    case = replace(planted.case(edited), requests=(asked,), templates=("a photo of a {class}.",))
    case = replace(
        case, original=replace(case.original, clip=clip), edited=replace(case.edited, clip=clip)
    )
    answer = ASK["names"](case)
    first, *others = answer.rows
    if kind is None:  # control: nothing is planted
        assert answer.verdict != NAME_ONLY and first.value < 0.1
        return
    assert (first.kind, first.text) == (kind, secret) and first.value == pytest.approx(1, abs=0.05)
    assert max(row.value for row in others) < 0.1
    # A wider word fits what stays as well, so it is shown and does not count.
    assert (answer.verdict == NAME_ONLY) == (kind != "wider")


def test_one_example_finds_what_no_name_does():
    one = planted.original()
    text = one.text.clone()
    text[planted.CAR] = torch.randn(planted.DIM, generator=torch.Generator().manual_seed(5)) / 9
    case = planted.case(replace(one, text=text))
    answer = ASK["search"](case)
    assert answer.verdict in (recoverable(1), NOT_FORGOTTEN, NAME_ONLY)
    assert answer.findings[-1].values["edited"] > 0.9


def test_examples_of_shuffled_labels_find_what_chance_does():
    one = planted.original()
    order = torch.randperm(len(one), generator=torch.Generator().manual_seed(3))
    shuffled = replace(one, embeddings=one.embeddings[order])
    for features, right in ((one, False), (shuffled, True)):
        case = planted.case(features)
        asking = Asking.of(case.mask, case.labels, case.domains, len(case.names))
        found, blind = _examples(case, asking, case.edited)
        assert (abs(float(found.mean() - blind.mean())) < 0.05) == right


def test_what_is_told_less_than_never_seen_is_over_forgotten():
    one = planted.original()
    cars = one.labels == planted.CAR
    rows = one.embeddings.clone()
    rows[cars] = rows[cars] - 3 * one.text[planted.CAR]  # the name is got by everyone but cars
    case = planted.case(replace(one, embeddings=rows))
    assert ASK["over-forgetting"](case).verdict == OVER_FORGOTTEN
    seen = planted.case(replace(one, embeddings=rows), replace(one, embeddings=rows))
    assert ASK["over-forgetting"](seen).verdict == FORGOTTEN  # as its reference
    assert ASK["over-forgetting"](planted.case(one)).verdict == NOT_FORGOTTEN  # control


def test_a_class_that_was_not_asked_for_and_is_lost_is_named():
    one = planted.original()
    rows = one.embeddings.clone()
    rows[one.labels == 3] = rows[one.labels == 4]
    answer = ASK["collateral"](planted.case(replace(one, embeddings=rows)))
    assert answer.verdict == NOT_KEPT
    assert answer.rows[0].text == "dog" and answer.rows[0].kind.startswith("lost")
    assert (answer.rows[0].value, answer.rows[0].original) == (0, 1)
    assert all(row.value == row.original for row in answer.rows[1:])  # control


def test_what_is_lost_on_other_data_is_told():
    """Here nothing is; there one class is taken for another, or the images are all alike."""
    case, one = planted.case(planted.original()), planted.original()
    mistaken, alike = one.embeddings.clone(), torch.ones_like(one.embeddings)
    mistaken[one.labels == 3] = one.embeddings[one.labels == 4]
    for rows, verdict, right in ((one.embeddings, KEPT, 1), (mistaken, NOT_KEPT, 5 / 6),
                                 (alike, NOT_KEPT, 1 / 6)):  # fmt: skip
        views = {"original": View(one, one.text),
                 "edited": View(replace(one, embeddings=rows), one.text)}  # fmt: skip
        there = replace(case, elsewhere=(Elsewhere("holidays", one.labels, views),))
        answer = ASK["collateral"](there)
        told = {finding.name: finding.values for finding in answer.findings}
        assert answer.verdict == verdict, answer.sentence
        assert told["other_1_accuracy"] == {"edited": pytest.approx(right), "original": 1}
        assert (told["other_1_search"]["edited"] < 0.9) == (verdict == NOT_KEPT)
        assert "on holidays 1.000 -> " in answer.sentence
    assert "holidays" not in ASK["collateral"](case).sentence  # control


def test_what_was_forgotten_first_is_asked_for_by_itself():
    one = planted.original()
    requests = (Forget(["car"]), Forget(["tree"]))
    mask = torch.zeros(6, 2, dtype=torch.bool)
    mask[[0, 5]] = True
    trees = planted.among_others(5)  # are forgotten, cars not
    case = replace(planted.case(trees), requests=requests, mask=mask)
    answer = ASK["several-edits"](case)
    assert answer.verdict == NOT_FORGOTTEN
    assert [row.kind for row in answer.rows] == [NOT_FORGOTTEN, FORGOTTEN]
    assert answer.rows[0].text == "1. car everywhere"
    alone = ASK["several-edits"](replace(case, requests=requests[:1]))
    assert alone.verdict == NOT_MEASURED
    untouched = replace(planted.case(one), requests=requests, mask=mask)  # control
    assert [row.kind for row in ASK["several-edits"](untouched).rows] == [NOT_FORGOTTEN] * 2


def test_a_question_says_what_it_lacks():
    names = replace(QUESTIONS[1], needs=frozenset({"features", "models"}))
    answer = names.answer(planted.case(planted.original()))
    assert answer.verdict == NOT_MEASURED and "models" in answer.sentence


def test_a_whole_domain_is_audited_too():
    one = planted.original()
    mask = torch.zeros(6, 2, dtype=torch.bool)
    mask[:, 1] = True
    mixed = one.embeddings.clone()  # every sketch becomes the mean of sketches
    sketches = one.domains == 1
    mixed[sketches] = mixed[sketches].mean(0)
    both = [replace(planted.case(f), mask=mask) for f in (replace(one, embeddings=mixed), one)]
    names = ("yardstick", "names", "search", "over-forgetting", "collateral")
    assert verdicts(both[0], *names) == (FORGOTTEN, FORGOTTEN, FORGOTTEN, FORGOTTEN, KEPT)
    assert verdicts(both[1], *names) == (*([NOT_FORGOTTEN] * 4), KEPT)  # control
