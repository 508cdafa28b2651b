"""Figures: what no list can fool, against models of which it is known what they tell."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from nullspace_unlearn.evaluate.asking import ALL, FOUND
from nullspace_unlearn.evaluate.bootstrap import resampled
from nullspace_unlearn.evaluate.figures import (
    FIGURES,
    evidence_of,
    grid_figures,
    most_found,
    paid_most,
)
from nullspace_unlearn.evaluate.measure import Measured, Model, measure
from nullspace_unlearn.evaluate.zeroshot import Grid

# Classes with images, names, dimensions; images of each class in each of two domains.
SHOWN, NAMES, DIM, EACH = 10, 200, 220, 15
# Where no image of a few wins a long list, the bootstrap takes that for certain.
NEARLY = 0.01


class World:
    """Images that lean to the axis of their class, among many more names than classes."""

    def __init__(self, kind: str, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        cells = torch.arange(2 * SHOWN).repeat_interleave(EACH)
        self.labels, self.domains = cells // 2, cells % 2
        self.mask = torch.zeros(SHOWN, 2, dtype=torch.bool)
        self.mask[slice(None) if kind == "domain" else slice(0, 2), slice(0, 1) if kind != "global"
                  else slice(None)] = True  # fmt: skip
        self.texts = torch.eye(NAMES, DIM)
        self.images = self.texts[self.labels] + 0.25 * torch.randn(
            len(cells), DIM, generator=random
        )
        self.gone = self.mask[self.labels, self.domains]
        self.forgotten = self.mask.any(1).nonzero()[:, 0]
        self.random = random

    def measure(self, images: Tensor | None = None, texts: Tensor | None = None) -> Measured:
        model = Model(
            self.images if images is None else images, self.texts if texts is None else texts
        )
        untouched = Model(self.images, self.texts)
        return measure(untouched, model, self.labels, self.domains, self.mask)


def value(found: Measured, name: str) -> float:
    return float(found.figures()[name])


def remaining(found: Measured) -> dict[str, float]:
    told = found.evidence.told
    assert told is not None
    ways = [way for way in told.ways if way != "recall"]
    return dict(zip(ways, found.evidence.remaining().tolist(), strict=True))


@pytest.fixture(params=["global", "cell", "domain"])
def world(request) -> World:
    return World(request.param)


def test_of_the_untouched_model_all_is_left(world: World) -> None:
    found = world.measure()
    assert value(found, "left") == 1 and value(found, "over") == 0
    assert value(found, "cost") == value(found, "paid") == value(found, "balance") == 0
    assert value(found, FOUND) > 0.9 and value(found, ALL) > 0.8
    assert found.before().keys() == found.figures().keys() == FIGURES.keys()
    assert [float(v) for v in found.before().values()] == pytest.approx(
        [float(v) for v in found.figures().values()], nan_ok=True
    )


def noise(w: World) -> tuple[Tensor | None, Tensor | None]:
    return torch.randn(len(w.labels), DIM, generator=w.random), None


def constant(w: World) -> tuple[Tensor | None, Tensor | None]:
    return torch.ones(len(w.labels), DIM), None


def mean_of_all(w: World) -> tuple[Tensor | None, Tensor | None]:
    """Each forgotten name scores the mean score of names, on every image.

    Of the names that no image is of: in a mean of few names an image's own would show.
    """
    images = w.images.clone()
    images[:, w.forgotten] = images[:, SHOWN:NAMES].mean(1, keepdim=True)
    return images, None


@pytest.mark.parametrize("kind", ["global", "cell", "domain"])
def test_of_noise_nothing_is_left_within_the_interval(kind: str) -> None:
    within = {"left": 0, "over": 0}
    for seed in range(20):
        ends = World(kind, seed).measure(*noise(World(kind, seed))).intervals(100)
        for name in within:
            within[name] += ends[name][0] < NEARLY
    assert min(within.values()) >= 15  # left and over are each the worst of six ways
    ends = World(kind).measure().intervals(100)  # the control
    assert ends["left"][0] > 0.9


def test_of_a_constant_embedding_nothing_is_left(world: World) -> None:
    found = world.measure(*constant(world))
    told = found.evidence.told
    assert torch.allclose(told.value, told.blind, atol=1e-12)
    assert max(value(found, "left"), value(found, "over")) < 1e-12
    assert found.intervals(50)["left"][1] < 0.05


@pytest.mark.parametrize("kind", ["global", "cell"])
def test_a_name_that_scores_the_mean_of_all_says_nothing(kind: str) -> None:
    found = World(kind).measure(*mean_of_all(World(kind)))
    ends = found.intervals(300)
    assert ends["left"][0] < NEARLY and ends["over"][0] < NEARLY and value(found, ALL) == 0
    assert value(found, "left") < 0.05 and value(found, "over") < 0.05


def test_a_name_struck_off_is_still_found(world: World) -> None:
    """A large bias against the name: no list names it, a search by it ranks as before."""
    images = torch.cat([world.images / world.images.norm(dim=1, keepdim=True),
                        torch.ones(len(world.labels), 1)], 1)  # fmt: skip
    texts = torch.cat([world.texts, torch.zeros(NAMES, 1)], 1)
    texts[world.forgotten, -1] = -10
    found = world.measure(images, texts)
    left = remaining(found)
    assert left[FOUND] == pytest.approx(1) and value(found, "left") > 0.95
    assert most_found(found.evidence) == FOUND
    if world.mask.all(0).any():  # a whole domain: all names are as low, so they name each other
        return
    assert all(value(found, name) == 0 for name in found.evidence.told.ways if "named" in name)


def test_a_decoy_is_seen_between_two_names(world: World) -> None:
    """Every forgotten image gets another name besides, that wins every list it is on."""
    images = world.images + 3 * world.gone[:, None] * world.texts[-1]
    found = world.measure(images)
    assert value(found, ALL) == 0 and value(found, "forgotten") == 0
    left = remaining(found)
    assert left["named_2"] > 0.95 and value(found, "left") > 0.95 and left[ALL] <= 0


def test_a_mirrored_name_is_over(world: World) -> None:
    images = world.images.clone()
    images[:, world.forgotten] *= -1
    found = world.measure(images)
    assert value(found, "over") > 0.7 and value(found, "left") < 0.05
    assert value(found, "balance") < 0.5


def test_no_scale_and_no_temperature_matter(world: World) -> None:
    images = world.images + world.texts[3] + 0.5 * world.images.roll(40, 0)
    one = world.measure(images)
    scale = 10 ** (4 * torch.rand(len(images), 1, generator=world.random) - 2)
    other = world.measure(100 * scale * images, 0.03 * world.texts)
    mine, theirs = one.figures(), other.figures()
    for name in FIGURES:
        assert float(theirs[name]) == pytest.approx(float(mine[name]), abs=1e-9, nan_ok=True)
    assert 0.1 < abs(value(one, "left") - 1) + abs(value(one, "cost"))  # something has changed


def test_ties_everywhere_and_one_name_that_stays() -> None:
    labels = torch.tensor([0, 0, 1, 1, 1])
    mask = torch.tensor([[True], [False]])
    both, same = Model(torch.eye(2)[labels], torch.eye(2)), Model(torch.ones(5, 2), torch.eye(2))
    found = measure(both, same, labels, None, mask)
    said = found.figures()
    assert float(said["named_2"]) == float(said[ALL]) == 0.5
    assert float(said[FOUND]) == pytest.approx(float(found.blind()[FOUND])) == pytest.approx(0.4)
    assert float(said["left"]) == float(said["over"]) == 0 and bool(said["named_5"].isnan())


def test_a_batch_is_its_models() -> None:
    world = World("cell")
    images = torch.stack([world.images, *(world.images.roll(i, 1) for i in (1, 2))])
    batch = world.measure(images).figures()
    for i, one in enumerate(images):
        single = world.measure(one).figures()
        for name, figure in single.items():
            assert float(batch[name].expand(3)[i]) == pytest.approx(float(figure), nan_ok=True)


def test_no_image_of_what_is_forgotten_and_a_model_that_never_knew_it() -> None:
    world = World("cell")
    some = ~world.gone
    model = Model(world.images[some], world.texts)
    found = measure(model, model, world.labels[some], world.domains[some], world.mask)
    said = found.figures()
    assert said["left"].isnan() and said["forgotten"].isnan() and said["balance"].isnan()
    assert float(said["cost"]) == 0 and float(said["kept"]) > 0.8
    assert "left" not in found.intervals(20) and "kept" in found.intervals(20)
    noise = Model(torch.randn(len(world.labels), DIM, generator=world.random), world.texts)
    never = measure(noise, noise, world.labels, world.domains, world.mask)
    known = [way for way, left in remaining(never).items() if left == left]
    assert FOUND not in known or never.evidence.told_before.of(FOUND) > 0.05


def test_the_deployed_list_is_a_way_of_asking() -> None:
    """Names that only the deployed list has are asked by that list alone."""
    world = World("global")
    texts = torch.cat([world.texts, -world.texts[:2]])
    deployed = torch.zeros(NAMES + 2, dtype=torch.bool)
    deployed[[0, NAMES, NAMES + 1]] = True
    images = world.images + 3 * world.gone[:, None] * world.texts[50]
    models = Model(world.images, texts), Model(images, texts)
    found = measure(*models, world.labels, world.domains, world.mask, names=NAMES,
                    deployed=deployed)  # fmt: skip
    without = world.measure(images).figures()
    said = found.figures()
    assert float(said["named_deployed"]) > 0.9 and without["named_deployed"].isnan()
    for name in ("named_2", ALL, FOUND, "kept", "cost"):
        assert float(said[name]) == float(without[name])
    assert "named_deployed" in found.intervals(20)
    none = torch.zeros(NAMES + 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="needs a name beside"):
        measure(*models, world.labels, world.domains, world.mask, deployed=none)


def test_several_classes_count_alike_however_many_images_they_have() -> None:
    world = World("global")
    some = (world.labels != 0) | (torch.arange(len(world.labels)) < 3)
    images = world.images.clone()
    images[world.labels == 0] = world.texts[7]
    models = Model(world.images[some], world.texts), Model(images[some], world.texts)
    found = measure(*models, world.labels[some], world.domains[some], world.mask)
    assert value(found, ALL) == pytest.approx(0.5, abs=0.1)
    assert found.evidence.told.value[0, -3] == 0 and (world.labels[some] == 0).sum() == 3


def test_who_paid_most() -> None:
    count = torch.full((3, 2), 5)
    accuracy = torch.tensor([[1.0, 0.9], [0.8, 0.5], [0.6, 0.0]]).double()
    lost = torch.tensor([[1.0, 0.0], [0.1, 0.2], [-0.1, 0.0]]).double()
    mask = torch.tensor([[True, False], [False, False], [False, False]])
    count[2, 1] = 0
    evidence = evidence_of(Grid(accuracy - lost, count), mask, Grid(accuracy, count))
    assert paid_most(evidence) == (1, 1)
    said = grid_figures(Grid(accuracy - lost, count), mask, Grid(accuracy, count))
    assert said["paid"] == pytest.approx(20) and said["cost"] == pytest.approx(100 * 0.2 / 4)
    assert said["worst_kept"] == pytest.approx(0.3)


def partly_erased(each: int, seed: int) -> Measured:
    """Six classes among twenty names; of one cell half of what tells it is taken away."""
    random = torch.Generator().manual_seed(seed)
    cells = torch.arange(12).repeat_interleave(each)
    mask = torch.zeros(6, 2, dtype=torch.bool)
    mask[0, 0] = True
    texts = torch.eye(20, 24)
    own = texts[cells // 2]
    images = own + 0.35 * torch.randn(len(cells), 24, generator=random)
    edited = images - 0.5 * own * (cells == 0)[:, None]
    edited += 0.15 * torch.randn(len(cells), 24, generator=random)
    return measure(Model(images, texts), Model(edited, texts), cells // 2, cells % 2, mask)


def test_intervals_hold_what_very_many_images_say() -> None:
    truth = partly_erased(1000, 99).figures()
    asked = ("left", "named_2", ALL, FOUND, "kept", "kept_search", "cost")
    held = narrow = 0
    for seed in range(20):
        ends = partly_erased(15, seed).intervals(100)
        for name in asked:
            (low, high), value = ends[name], float(truth[name])
            held += low <= value <= high
            third = (high - low) / 3
            narrow += low + third <= value <= high - third
    assert held / (20 * len(asked)) > 0.82
    assert narrow / (20 * len(asked)) < 0.65  # the control


def test_intervals_lie_where_the_figure_can() -> None:
    world = World("cell")
    images = world.images + 3 * world.gone[:, None] * world.texts[-1]
    bounded = [name for name, one in FIGURES.items() if one.unit == "share"]
    for given in (images, world.images, *(noise(world)[:1])):
        ends = world.measure(given).intervals(50)
        for name in bounded:
            low, high = ends.get(name, (0, 0))
            assert 0 <= low <= high and (name == "left" or high <= 1 + 1e-9), name
    assert world.measure(images).intervals(50)[ALL] == (0, 0)  # at the edge of the range


def test_intervals_are_scipys() -> None:
    """Of a mean over one class's images: scipy's bootstrap of the same numbers."""
    world = World("cell", seed=3)
    images = torch.where(torch.rand(len(world.labels), 1, generator=world.random) < 0.4,
                         world.images.roll(2, 1), world.images)  # fmt: skip
    world.mask[1] = False
    found = world.measure(images)
    hits = (found.right[1] & world.mask[world.labels, world.domains])[
        (world.labels == 0) & (world.domains == 0)
    ]
    theirs = scipy.stats.bootstrap(
        (hits.double().numpy(),), np.mean, n_resamples=4000, method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    low, high = found.intervals(1500)["forgotten"]
    assert low == pytest.approx(theirs.low, abs=0.07) and 0.2 < theirs.high - theirs.low
    assert high == pytest.approx(theirs.high, abs=0.07)
    again = found.intervals(1500)["forgotten"]
    assert again == (low, high) != found.intervals(1500, seed=1)["forgotten"] or low < high
    strata = torch.tensor([5, 2, 5, 5, 2, 9])
    for some in resampled(strata, 50):
        for one in strata.unique():
            assert (some[:, strata == one].sum(1) == (strata == one).sum()).all()
