"""What many edits leave told, against the models they make, one at a time."""

from __future__ import annotations

import pytest
import torch

from nullspace_unlearn.edit import Edit
from nullspace_unlearn.evaluate.asking import FOUND
from nullspace_unlearn.evaluate.measure import Model, measure
from nullspace_unlearn.evaluate.told import Shared
from nullspace_unlearn.forget import Forget

CLASSES, DOMAINS = tuple("abcdefghij"), ("photo", "sketch", "cartoon")
REQUESTS = (
    Forget(["a"]), Forget(["a", "c"]), Forget(["b"], ["sketch"]), Forget(domains=["sketch"]),
)  # fmt: skip


def world(n: int = 400) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(0)
    labels, domains = (torch.randint(k, (n,), generator=random) for k in (10, 3))
    texts = torch.randn(12, 16, generator=random)
    images = texts[labels] + 1.5 * torch.randn(n, 16, generator=random)
    return images, texts, labels, domains


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("rank", [1, 3])
def test_told_is_that_of_each_edited_model(request_: Forget, rank: int) -> None:
    images, texts, labels, domains = world()
    mask = request_.mask(CLASSES, DOMAINS)
    edits = Edit(0.3 * torch.randn(5, 16, rank), torch.randn(5, 16, rank))
    shared = Shared.of(images, texts, labels, domains)
    found, untouched = shared.told(mask, edits), shared.told(mask, None)
    before = Model(images, texts)
    for i in range(5):
        after = Model(edits[i].apply(images.double()), texts)
        expected = measure(before, after, labels, domains, mask).evidence
        assert found.ways == expected.told.ways
        for ours, theirs in (
            (found.value[i], expected.told.value), (found.blind[i], expected.told.blind),
            (untouched.value, expected.told_before.value),
            (untouched.blind, expected.told_before.blind),
        ):  # fmt: skip
            assert torch.allclose(ours, theirs, atol=1e-9)
    assert (found.value - untouched.value).abs().max() > 0.1  # the control: edits do something


def test_a_sample_of_the_others_tells_nearly_the_same() -> None:
    images, texts, labels, domains = world(4000)
    mask = REQUESTS[0].mask(CLASSES, DOMAINS)
    edit = Edit(0.3 * torch.randn(2, 16, 1), torch.randn(2, 16, 1))
    whole, some = (
        Shared.of(images, texts, labels, domains, most).told(mask, edit) for most in (4000, 600)
    )
    assert torch.equal(some.value, whole.value)  # what is forgotten is asked whole
    at = whole.ways.index(FOUND)
    assert torch.equal(some.blind[..., at], whole.blind[..., at])
    assert 0 < (some.blind - whole.blind).abs().max() < 0.05
    few = Shared.of(images, texts, labels, domains, 3).told(
        REQUESTS[2].mask(CLASSES, DOMAINS), edit
    )
    assert torch.isfinite(few.blind).all()  # none of the domain was drawn: all are asked
