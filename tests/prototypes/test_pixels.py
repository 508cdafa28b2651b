"""Synthesised pictures: what is used is what is looked at; each on its own; nothing lost."""

from __future__ import annotations

import copy
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1] / "clip"))

import pico  # noqa: E402

from nullspace_unlearn.clip import load  # noqa: E402
from nullspace_unlearn.prototypes import cell_prototypes, pixels  # noqa: E402
from nullspace_unlearn.prototypes.pixels import Pictures, Synthesis, synthesise  # noqa: E402
from nullspace_unlearn.prototypes.starts import start  # noqa: E402

CLASSES = ("car", "cat", "tree")
DOMAINS = {"photo": "photo", "sk": "sketch"}
TEMPLATES = ("a {domain} of a {class}.", "a {class}, {domain}")
CELLS = len(CLASSES) * len(DOMAINS)
FEW = Synthesis(each=2, steps=4, step_size=1e-3, batch_size=5)


@pytest.fixture(scope="module")
def mini():
    return load("nsu-mini", device="cpu")


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return load(pico.write("ViT-B-32", tmp_path_factory.mktemp("vit") / "model"), device="cpu")


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    return load(pico.write("RN50", tmp_path_factory.mktemp("resnet") / "model"), device="cpu")


def make(clip, synthesis=FEW, **options) -> Pictures:
    return synthesise(clip, CLASSES, DOMAINS, TEMPLATES, synthesis, quiet=True, **options)


@pytest.fixture(scope="module")
def made(mini):
    return make(mini, Synthesis(each=2, steps=8, step_size=0.02))


@pytest.fixture
def passes(monkeypatch):
    """Number of pictures in each forward pass of the ascent."""
    counted: list[int] = []
    original = pixels.encode

    def encode(model, images):
        counted.append(len(images))
        return original(model, images)

    monkeypatch.setattr(pixels, "encode", encode)
    return counted


def scores(clip, made) -> np.ndarray:
    """Cosine of each picture with each cell's prompt."""
    z = made.features.embeddings.double()
    text = cell_prototypes(clip, CLASSES, tuple(DOMAINS.values()), TEMPLATES).flatten(0, 1)
    return (z / z.norm(dim=-1, keepdim=True) @ text.mT).numpy()


def test_features_are_those_of_the_pictures(mini, made):
    """Oracle: the pictures as PIL images through the model's own preprocessing, one by one."""

    def by_hand(arrays):
        with torch.no_grad():
            batch = torch.stack([mini.preprocess(Image.fromarray(a)) for a in arrays])
            return mini.model.encode_image(batch, normalize=False)

    assert made.images.dtype == torch.uint8
    arrays = made.images.permute(0, 2, 3, 1).numpy()
    features = made.features
    torch.testing.assert_close(features.embeddings, by_hand(arrays), rtol=1e-4, atol=1e-4)
    mirrored = by_hand(arrays[..., ::-1].copy())  # control: BGR
    assert not torch.allclose(features.embeddings, mirrored, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(
        mini.project(features.hidden), features.embeddings, rtol=1e-4, atol=1e-4
    )
    assert features.class_names == CLASSES and features.domain_names == tuple(DOMAINS)
    assert features.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert features.domains.tolist() == [0, 0, 1, 1] * 3


def test_reached_says_whether_the_model_names_the_cell(mini, made):
    own = np.arange(CELLS).repeat(2)
    assert (made.reached.numpy() == (scores(mini, made).argmax(1) == own)).all()
    assert made.reached.float().mean() > 0.7
    untouched = make(mini, replace(FEW, steps=0))  # control
    assert untouched.reached.float().mean() < 0.5


def test_ascent_raises_what_sets_the_cell_apart(mini, made):
    text = cell_prototypes(mini, CLASSES, tuple(DOMAINS.values()), TEMPLATES).flatten(0, 1)
    apart = functional.normalize(text - text.mean(0), dim=-1).repeat_interleave(2, 0)

    def height(synthesis):
        return (functional.normalize(synthesis.features.embeddings.double()) * apart).sum(-1)

    none, one = make(mini, replace(FEW, steps=0)), make(mini, replace(FEW, steps=1))
    assert (height(one) > height(none)).all() and (height(made) > height(one)).all()
    starts = torch.stack([start(64, 64, 0, sample) for sample in range(2)]).repeat(CELLS, 1, 1, 1)
    assert torch.equal(none.images, (starts * 255).round().byte())  # control: no step, no change


def test_ascent_ends_where_a_picture_is_told_apart_like_its_prompt(vit, passes):
    synthesis = Synthesis(each=1, steps=20, batch_size=CELLS)
    made = make(vit, synthesis)
    moving = (make(vit, replace(synthesis, steps=21)).images != made.images).flatten(1).any(1)
    assert passes[0] == CELLS and passes[-1] == moving.sum() and 0 < moving.sum() < CELLS

    def margin(rows):
        rows = rows.copy()
        own = rows.diagonal().copy()
        np.fill_diagonal(rows, -np.inf)
        return own - rows.max(1)

    text = cell_prototypes(vit, CLASSES, tuple(DOMAINS.values()), TEMPLATES).flatten(0, 1)
    wanted = margin((text @ text.mT).numpy())
    found = margin(scores(vit, made))
    # Rounding to 8 bits may cost a little of it.
    assert ((found > 0.95 * wanted) == ~moving.numpy()).all()
    assert made.reached[~moving].all()


@pytest.mark.parametrize("family", ["vit", "resnet"])
def test_each_picture_is_on_its_own(family, request):
    clip = request.getfixturevalue(family)
    one, all_ = (make(clip, replace(FEW, batch_size=size)) for size in (1, 100))
    moved = (one.images.int() - all_.images.int()).abs()
    # Where a gradient is all rounding, Adam's step is as large as elsewhere.
    assert (moved <= 1).float().mean() > 0.999
    torch.testing.assert_close(
        one.features.embeddings, all_.features.embeddings, rtol=1e-2, atol=1e-2
    )
    more = make(clip, replace(FEW, each=3))
    first = more.images.unflatten(0, (CELLS, 3))[:, :2].flatten(0, 1)
    assert ((first.int() - one.images.int()).abs() <= 1).float().mean() > 0.999
    other = make(clip, replace(FEW, seed=1))  # control
    assert ((other.images.int() - one.images.int()).abs() <= 1).float().mean() < 0.9


def test_batches_made_side_by_side_are_those_made_one_after_the_other(vit, monkeypatch):
    alone = make(vit, FEW)
    busy, most = set(), []
    ascend = pixels._ascend

    def watched(*given):
        busy.add(threading.get_ident())
        most.append(len(busy))
        return ascend(*given)

    monkeypatch.setattr(pixels, "_ascend", watched)
    torch.set_num_threads(2)
    try:
        beside = make(vit, FEW)
        assert torch.get_num_threads() == 2  # as before
    finally:
        torch.set_num_threads(1)
    assert torch.equal(beside.images, alone.images)
    assert max(most) == 2  # control: there were two threads
    assert not torch.equal(make(vit, replace(FEW, seed=1)).images, alone.images)


def test_same_seed_same_picture(vit):
    first, other = (make(vit, replace(FEW, seed=seed)) for seed in (3, 4))
    with torch.no_grad():
        second = make(vit, replace(FEW, seed=3))
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.features.hidden, second.features.hidden)
    assert not torch.equal(first.images, other.images)


def test_the_model_stays_as_it_was(resnet):
    before = {key: value.clone() for key, value in resnet.model.state_dict().items()}
    make(resnet)
    assert not any(module.training for module in resnet.model.modules())
    assert all(p.grad is None and not p.requires_grad for p in resnet.model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in resnet.model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(vit, dtype, tmp_path):
    precision = {torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]
    clip = load(pico.write("ViT-B-32", tmp_path / "model"), device="cpu", precision=precision)
    dtypes = [p.dtype for p in clip.model.parameters()]
    half, full = make(clip), make(vit)
    assert dtype in dtypes and dtypes == [p.dtype for p in clip.model.parameters()]
    assert half.features.embeddings.dtype == torch.float32
    # The ascent itself is float32, on weights that were rounded.
    near = functional.cosine_similarity(half.features.embeddings, full.features.embeddings)
    assert near.min() > 0.98
    other = functional.cosine_similarity(
        half.features.embeddings[::2], full.features.embeddings[1::2]
    )
    assert other.max() < 0.9  # control


def test_pictures_of_any_shape(tmp_path, monkeypatch):
    square = pico.config

    def oblong(name, folder):
        made = square(name, folder)
        made["model_cfg"]["vision_cfg"]["image_size"] = [32, 48]
        return made

    monkeypatch.setattr(pico, "config", oblong)
    clip = load(pico.write("ViT-B-32", tmp_path / "model"), device="cpu")
    assert make(clip, cache=tmp_path / "cache").images.shape == (2 * CELLS, 3, 32, 48)
    assert torch.equal(*(make(clip, cache=tmp_path / "cache").images for _ in range(2)))


def test_an_interrupted_run_resumes(vit, tmp_path, passes, monkeypatch):
    whole = make(vit)
    taken = passes.copy()
    assert taken[: FEW.steps + 1] == [5] * (FEW.steps + 1) and taken[-1] == 2  # three batches
    passes.clear()
    counting = pixels.encode

    def interrupted(model, images):
        if len(passes) == FEW.steps + 1:  # in the second batch
            raise KeyboardInterrupt
        return counting(model, images)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pixels, "encode", interrupted)
        make(vit, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == FEW.batch_size

    passes.clear()
    resumed = make(vit, cache=tmp_path)
    assert passes == taken[FEW.steps :]
    assert torch.equal(resumed.images, whole.images)
    assert torch.equal(resumed.features.embeddings, whole.features.embeddings)
    assert torch.equal(resumed.reached, whole.reached)

    passes.clear()
    make(vit, replace(FEW, batch_size=3, each=1), cache=tmp_path)
    assert passes == []  # neither changes a picture
    make(vit, replace(FEW, seed=1), cache=tmp_path)
    assert len(passes) > 2 * FEW.steps  # control


@pytest.mark.parametrize("what", ["weights", "templates", "names", "steps"])
def test_what_makes_other_pictures_is_not_read_back(vit, tmp_path, passes, what):
    synthesis = replace(FEW, steps=1)
    make(vit, synthesis, cache=tmp_path)
    before = len(passes)
    clip, classes, templates = vit, CLASSES, TEMPLATES
    if what == "weights":
        clip = replace(vit, model=copy.deepcopy(vit.model))
        next(p for p in clip.model.parameters() if p.ndim == 4)[0] *= 1.001
    elif what == "templates":
        templates = TEMPLATES[:1]
    elif what == "names":
        classes = (*CLASSES[:2], "dog")
    else:
        synthesis = replace(synthesis, steps=2)
    synthesise(clip, classes, DOMAINS, templates, synthesis, cache=tmp_path, quiet=True)
    assert len(passes) >= 2 * before > 0


def test_damaged_cache_files_are_made_anew(vit, tmp_path, passes):
    whole = make(vit, cache=tmp_path)
    files = sorted(tmp_path.iterdir())
    cut, flipped, small, text = files[:4]
    cut.write_bytes(cut.read_bytes()[:-100])
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    Image.new("RGB", (8, 8)).save(small)
    text.write_text("not a picture")
    passes.clear()
    again = make(vit, cache=tmp_path)
    # Which four they are depends on our code, of which the names are hashes. They are made in the
    # batches that they were made in, not in one of four, which would give other last bits.
    assert passes and set(passes[:1]) <= {FEW.batch_size, 2 * CELLS % FEW.batch_size}
    assert torch.equal(again.images, whole.images)
    passes.clear()
    assert torch.equal(make(vit, cache=tmp_path).images, again.images)
    assert passes == [] and sorted(tmp_path.iterdir()) == files


def test_a_cache_that_cannot_be_written_is_refused_before_any_work(vit, tmp_path, passes):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match="cannot be written"):
        make(vit, cache=tmp_path / "file")
    assert passes == []
    make(vit, cache=tmp_path / "new" / "folder")
    assert passes != []  # control


def test_a_cache_that_fails_meanwhile_only_warns(vit, tmp_path, monkeypatch):
    whole, full = make(vit), []

    def fails(*_: object, **__: object) -> None:
        full.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pixels, "new_file", fails)
    with pytest.warns(UserWarning, match="pictures are not kept: .*No space left"):
        assert torch.equal(make(vit, cache=tmp_path).images, whole.images)
    assert len(full) == 1  # said once


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (lambda tower, given, out: out.detach(), "passes no gradient to the pixels"),
        (lambda tower, given, out: out.round(), "passes no gradient to the pixels"),
        (lambda tower, given, out: out + (0 * out).abs().sqrt(), "passes NaN or Inf"),
        (lambda tower, given, out: out * torch.nan, "gives NaN or Inf"),
    ],
)
def test_a_tower_that_cannot_be_ascended_is_refused(vit, hook, message):
    broken = replace(vit, model=copy.deepcopy(vit.model))
    make(broken)  # control
    broken.model.visual.register_forward_hook(hook)
    with pytest.raises(ValueError, match=message) as error:
        make(broken)
    assert "\n" not in str(error.value)


def test_embeddings_that_are_not_finite_are_refused(vit):
    broken = replace(vit, model=copy.deepcopy(vit.model))
    broken.model.visual.register_forward_hook(lambda tower, given, out: out * torch.inf)
    with pytest.raises(ValueError, match="must be finite"):
        make(broken, replace(FEW, steps=0))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"each": 0}, "each must be a whole number from 1, got 0"),
        ({"steps": -1}, "steps must be a whole number from 0, got -1"),
        ({"seed": -1}, "seed must be a whole number from 0, got -1"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1, got 0"),
        ({"step_size": 0.0}, r"step_size must lie in \(0, 1\], got 0.0"),
        ({"step_size": float("nan")}, r"step_size must lie in \(0, 1\], got nan"),
    ],
)
def test_numbers_out_of_range(numbers, message):
    with pytest.raises(ValueError, match=message):
        Synthesis(**numbers)


@pytest.mark.parametrize(
    ("classes", "domains", "templates", "message"),
    [
        (("car",), {"photo": "photo"}, TEMPLATES, "at least 2 cells"),
        (CLASSES, {}, TEMPLATES, "at least 2 cells"),
        (CLASSES, DOMAINS, (), "1 template"),
        (CLASSES, DOMAINS, ("a {class}",), "must hold"),
        (("car", "car"), DOMAINS, TEMPLATES, "named twice"),
    ],
)
def test_bad_requests(vit, classes, domains, templates, message):
    with pytest.raises(ValueError, match=message):
        synthesise(vit, classes, domains, templates, FEW, quiet=True)


def test_the_warning_names_cells_that_no_picture_stands_for(made):
    reached = torch.ones(2 * CELLS, dtype=torch.bool)
    reached[[0, 6, 7]] = False  # one of car/photo's two, both of cat/sk's
    line = replace(made, reached=reached).warning()
    assert "in 1 of 6 cells: cat/sk" in line and "car" not in line and "\n" not in line
    assert replace(made, reached=torch.ones_like(reached)).warning() is None


@pytest.mark.parametrize("size", [(64, 64), (48, 96)])
def test_starting_pictures(size):
    """Oracle: 1/f noise has a straight spectrum of slope -2 in power, white noise of slope 0."""
    pictures = [start(*size, seed, sample).numpy() for seed in (0, 1) for sample in range(4)]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)
    assert all(p.shape == (3, *size) and 0 <= p.min() < p.max() <= 1 for p in pictures)
    again = start(*size, 1, 2).numpy()
    assert (again == pictures[6]).all()

    frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.fftfreq(size[1]))
    band = (frequency > 2 / min(size)) & (frequency < 0.4)

    def slope(some):
        power = np.mean([np.abs(np.fft.fft2(p)) ** 2 for p in some], (0, 1))
        return np.polyfit(np.log(frequency[band]), np.log(power[band]), 1)[0]

    clouds, blank, scribbled = pictures[::2], pictures[1::4], pictures[3::4]
    assert -2.3 < slope(clouds) < -1.7
    assert -0.3 < slope(blank) < 0.3
    assert all(0.4 < p.mean() < 0.6 for p in clouds)
    assert all(p.mean() > 0.95 and p.min() > 0.8 for p in blank)
    assert all(p.min() < 0.5 and 0.02 < (p < 0.8).mean() < 0.5 for p in scribbled)


def test_pictures_of_some_cells_are_those_of_all_cells(mini, tmp_path, passes):
    only = torch.tensor([[False, True], [True, False], [False, False]])
    some = make(mini, only=only, cache=tmp_path)
    work = sum(passes)
    every = make(mini)
    assert work < sum(passes) - work
    rows = only.flatten().repeat_interleave(2)
    close = (some.images.int() - every.images[rows].int()).abs() <= 1  # batches round differently
    assert close.all() and not torch.equal(some.images[0], some.images[2])
    assert torch.equal(some.features.labels, every.features.labels[rows])
    assert torch.equal(some.features.domains, every.features.domains[rows])
    assert torch.equal(some.reached, every.reached[rows])
    passes.clear()
    make(mini, only=only, cache=tmp_path)  # and they are found again
    assert not passes
    make(mini, cache=tmp_path)  # control
    assert passes


def test_a_warning_names_cells_that_were_asked_for_alone(mini):
    only = torch.tensor([[False, True], [False, False], [False, False]])
    untouched = make(mini, replace(FEW, steps=0, seed=3), only=only)
    missed = replace(untouched, reached=torch.zeros(2, dtype=torch.bool)).warning()
    assert missed is not None and "1 of 1 cells: car/sk" in missed
    assert replace(untouched, reached=torch.tensor([False, True])).warning() is None
