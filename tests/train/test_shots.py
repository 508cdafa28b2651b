"""Splits share no image and follow from the seed; images are the same wherever they are read."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import nullspace_unlearn as nsu
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data import mini
from nullspace_unlearn.data.folders import ImageSet, find_images
from nullspace_unlearn.evaluate.pictures import embed_pictures
from nullspace_unlearn.train import shots as module
from nullspace_unlearn.train.shots import from_bundled, from_images, from_tensors, split

CLASSES, DOMAINS = ("car", "dog", "tree"), ("photo", "sketch")
SIZES = {("car", "photo"): 9, ("dog", "sketch"): 6}


@pytest.fixture(scope="module")
def clip() -> Clip:
    return nsu.load("nsu-mini", device="cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small pictures, 7 in most cells; none twice."""
    folder = tmp_path_factory.mktemp("images")
    for c in CLASSES:
        for d in DOMAINS:
            (folder / d / c).mkdir(parents=True)
            for i in range(SIZES.get((c, d), 7)):
                mini.render(c, d, 5_000_000 + i, size=16).save(folder / d / c / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def images(root: Path) -> ImageSet:
    return find_images(root)


def names(some: ImageSet) -> list[str]:
    return [path.relative_to(some.root).as_posix() for path in some.paths]


# Splits.


@pytest.mark.parametrize("shots, validation", [(1, 0), (2, 3), (4, 2), (6, 0), (3, 3)])
@pytest.mark.parametrize("seed", [0, 3])
def test_every_image_is_in_one_part_and_every_cell_has_its_share(
    images: ImageSet, shots: int, validation: int, seed: int
) -> None:
    parts = split(images, shots, validation, seed)
    every = names(parts.train) + names(parts.validation) + names(parts.rest)
    assert sorted(every) == sorted(names(images)) and len(set(every)) == len(images)
    assert (parts.train.counts == shots).all()
    assert (parts.validation.counts == validation).all()
    assert torch.equal(parts.rest.counts, images.counts - shots - validation)
    for part in (parts.train, parts.validation, parts.rest):
        assert names(part) == sorted(names(part))
        assert (part.classes, part.domains) == (images.classes, images.domains)
        for name, c, d in zip(
            names(part), part.class_index.tolist(), part.domain_index.tolist(), strict=True
        ):
            assert name.startswith(f"{images.domains[d]}/{images.classes[c]}/")


def test_a_split_follows_from_the_seed(images: ImageSet) -> None:
    one, again, other = (split(images, 2, 2, seed) for seed in (0, 0, 1))
    for part in ("train", "validation", "rest"):
        assert names(getattr(one, part)) == names(getattr(again, part))
        assert names(getattr(one, part)) != names(getattr(other, part))


def test_the_training_draw_depends_on_nothing_else(root: Path, images: ImageSet) -> None:
    drawn = names(split(images, 2, 0).train)
    assert names(split(images, 2, 3).train) == drawn
    assert set(drawn) < set(names(split(images, 3, 0).train))  # more shots are more, not others
    # Nor on the other cells: without one class the rest is drawn as before.
    fewer = images.subset((images.class_index != 0).nonzero()[:, 0])
    listing = root.parent / "listing.txt"
    listing.write_text("\n".join(names(fewer)))
    left = names(split(find_images(root, listing=listing), 2, 0).train)
    assert left == [name for name in drawn if "/car/" not in name]


def test_draws_in_two_cells_are_not_the_same(images: ImageSet) -> None:
    """Files go by the same names in every cell, so that draws that went by number would show."""
    drawn = split(images, 3).train
    of_cell: dict[str, set[str]] = {}
    for name in names(drawn):
        cell, _, file = name.rpartition("/")
        of_cell.setdefault(cell, set()).add(file)
    assert len({tuple(sorted(files)) for files in of_cell.values()}) > 3


@pytest.mark.parametrize(
    "shots, validation, message",
    [
        (0, 0, "at least 1 training and 0 validation images a cell are needed, got 0 and 0"),
        (-1, 3, "got -1 and 3"),
        (1, -1, "got 1 and -1"),
        (4, 3, r"'sketch' has 6 images of 'dog' \(1 such cells\), and 4 shots and 3 for valid"),
        (8, 0, r"has 7 images of .* \(5 such cells\), and 8 shots and 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(
    images: ImageSet, shots: int, validation: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        split(images, shots, validation)


def test_classes_that_differ_between_domains_are_refused(images: ImageSet) -> None:
    there = (images.class_index != 1) | (images.domain_index != 0)
    with pytest.raises(
        ValueError, match=r"differ .* no image of 'dog' in 'photo' \(1 such cells\); use --list"
    ):
        split(images.subset(there.nonzero()[:, 0]), 1)
    split(images, 1)  # control


# Images from files.


def test_memory_and_disk_give_the_same_images(
    clip: Clip, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: Pillow and the model's own preprocessing."""
    held = from_images(clip, images)
    opened: list[Path] = []
    read = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or read(path))
    monkeypatch.setattr(module, "_IN_MEMORY", 0)
    lazy = from_images(clip, images)
    assert not opened
    chosen = torch.tensor([5, 0, 41, 5, 17])
    expected = torch.stack([clip.preprocess(read(images.paths[i]).convert("RGB")) for i in chosen])
    for some in (held, lazy, lazy):
        assert torch.equal(some.read(chosen), expected)
        assert some.read(chosen[:0]).shape == (0, 3, 64, 64)
        assert torch.equal(some.labels, images.class_index) and len(some) == len(images)
        assert torch.equal(some.domains, images.domain_index)
    assert len(opened) == 10
    assert held.source == lazy.source == {"images": images.root.name, "files": names(images)}
    assert not torch.equal(held.read(chosen), held.read(chosen.flip(0)))  # control


def test_a_subset_is_those_images(clip: Clip, images: ImageSet) -> None:
    whole = from_images(clip, images)
    chosen = torch.tensor([30, 2, 11])
    some = whole.subset(chosen).subset(torch.tensor([2, 0]))
    left = torch.tensor([11, 30])
    assert torch.equal(some.labels, whole.labels[left]) and len(some) == 2
    assert torch.equal(some.domains, whole.domains[left])
    assert torch.equal(some.read(torch.tensor([1, 0, 1])), whole.read(left[[1, 0, 1]]))
    # It says which they are, or a run on others could be taken for this one.
    assert some.source != whole.source != whole.subset(chosen).source
    assert some.source != whole.subset(chosen).subset(torch.tensor([0, 2])).source


@pytest.mark.parametrize("memory", [0, 2 << 30])
def test_a_file_that_cannot_be_read_is_named(
    clip: Clip, images: ImageSet, memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in images.paths[::5]:
        copy = tmp_path / path.relative_to(images.root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    damaged = sorted(tmp_path.rglob("*.png"))[3]
    monkeypatch.setattr(module, "_IN_MEMORY", memory)
    whole = from_images(clip, find_images(tmp_path))
    assert whole.read(torch.arange(len(whole))).isfinite().all()  # control
    damaged.write_bytes(b"not an image")
    with pytest.raises(ValueError, match=rf"{damaged.name}' cannot be read: .*; take it out"):
        some = from_images(clip, find_images(tmp_path))
        some.read(torch.arange(len(some)))


# Bundled pictures.


def test_bundled_pictures_are_so_many_of_every_cell(clip: Clip) -> None:
    train, validation = from_bundled(clip, CLASSES, DOMAINS, 2, 1, seed=6)
    for some, each in ((train, 2), (validation, 1)):
        cells = torch.stack([some.labels, some.domains], 1)
        _, counts = cells.unique(dim=0, return_counts=True)
        assert counts.tolist() == [each] * 6
    every = torch.cat([s.read(torch.arange(len(s))) for s in (train, validation)])
    assert len(every.flatten(1).unique(dim=0)) == 18  # no picture twice
    again, _ = from_bundled(clip, CLASSES, DOMAINS, 2, 0, seed=6)
    assert torch.equal(again.read(torch.arange(12)), train.read(torch.arange(12)))
    other, none = from_bundled(clip, CLASSES, DOMAINS, 2, 0, seed=7)
    assert not torch.equal(other.read(torch.arange(12)), train.read(torch.arange(12)))
    assert len(none) == 0 and none.read(torch.arange(0)).shape == (0, 3, 64, 64)
    assert len({str(s.source) for s in (train, validation, other, none)}) == 4


def test_bundled_seeds_are_used_for_nothing_else(
    clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No seed is drawn twice, whatever is asked for, nor one that figures are reported on."""
    drawn: list[int] = []
    picture = mini.render("car", "photo", 0)

    def render(class_name: str, domain: str, seed: int) -> object:
        drawn.append(seed)
        return picture

    monkeypatch.setattr(module.mini, "render", render)
    small = replace(clip, preprocess=lambda _: torch.zeros(3, 1, 1))
    for seed in (0, 1, 998, 999):
        from_bundled(small, ("car",), ("photo",), 1000, 1000, seed)
    assert len(drawn) == len(set(drawn)) == 8000
    reported: list[int] = []
    monkeypatch.setattr(
        "nullspace_unlearn.evaluate.pictures.mini.render",
        lambda c, d, seed: reported.append(seed) or picture,
    )
    embed_pictures(clip, each=1, quiet=True)
    first = min(reported)
    # Figures are reported from there on; far more pictures a cell than anyone draws lie between.
    assert first == 10_000_000
    assert min(drawn) >= first + 5_000_000
    # Real images of the closed-form benchmark: a millionth draw of eight, and those after it.
    assert max(drawn) < first + 1_000_000 * 8


@pytest.mark.parametrize(
    "shots, validation, seed, message",
    [
        (0, 0, 0, "1 to 1000 training and 0 to 1000 validation .* got 0 and 0"),
        (1001, 0, 0, "got 1001 and 0"),
        (1, 1001, 0, "got 1 and 1001"),
        (1, -1, 0, "got 1 and -1"),
        (1, 0, 1000, "seed .* must be 0 to 999, got 1000"),  # it would be the validation's
        (1, 0, -1, "must be 0 to 999, got -1"),
    ],
)
def test_bundled_numbers_out_of_range_are_refused(
    clip: Clip, shots: int, validation: int, seed: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        from_bundled(clip, CLASSES, DOMAINS, shots, validation, seed)


# Tensors.


def test_tensors_come_back_and_say_which_they_are() -> None:
    images = torch.randn(6, 3, 4, 5, dtype=torch.float64)
    labels, domains = torch.arange(6) % 3, torch.arange(6) % 2
    some = from_tensors(images, labels, domains)
    chosen = torch.tensor([4, 4, 0])
    assert torch.equal(some.read(chosen), images.float()[chosen])
    assert some.read(chosen).dtype == torch.float32
    assert from_tensors(images.clone(), labels, domains).source == some.source
    for other in (
        from_tensors(images + 1, labels, domains),
        from_tensors(images, labels.flip(0), domains),
        from_tensors(images, labels, 1 - domains),
    ):
        assert other.source != some.source
    assert from_tensors(images, labels, domains, {"images": "mine"}).source == {"images": "mine"}


def test_tensors_of_other_lengths_are_refused(
    unchecked: Callable[[], AbstractContextManager[None]],
) -> None:
    images, index = torch.zeros(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64)
    with unchecked():
        for given in ((images[:3], index, index), (images, index[:3], index)):
            with pytest.raises(ValueError, match="must be of one length, got"):
                from_tensors(*given)
        from_tensors(images, index, index)  # control
