"""Each template by itself, against the comparison made with it alone."""

from __future__ import annotations

import pytest

import nullspace_unlearn as nsu
from nullspace_unlearn import Forget
from nullspace_unlearn.data.bundled import bundled_to_report
from nullspace_unlearn.evaluate.compare import compare
from nullspace_unlearn.evaluate.phrasing import phrasings
from nullspace_unlearn.features.embed import embed
from nullspace_unlearn.prototypes import standard_templates


def test_each_template_is_a_comparison_of_its_own():
    clip = nsu.load("nsu-mini", device="cpu")
    features = embed(clip, bundled_to_report(2), quiet=True)
    forget = Forget(["car"], ["sketch"])
    edit = nsu.erase(clip, forget)
    templates = ("a photo of a {class}.", "wow, a {class}!", "{class}")
    found = phrasings(clip, features, forget, templates)
    assert {one.template for one in found} == set(templates)
    assert [one.told for one in found] == sorted((one.told for one in found), reverse=True)
    for one in found:
        figures = compare(
            clip, edit.fold(clip), edit, "visual", features, forget, [one.template]
        ).figures["before"]
        assert one.value == pytest.approx(figures["named_all"])
    assert len({one.value for one in found} | {one.blind for one in found}) > 1
    assert phrasings(clip, features, Forget(["car"], ["sketch"]))[0].told >= found[-1].told
    assert len(standard_templates()) == 80
    assert all(text.count("{class}") == 1 for text in standard_templates())
