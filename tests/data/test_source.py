"""Parts of a source: drawn by seed, sharing no image; and the check that no role shares one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nullspace_unlearn.data.bundled import bundled_to_learn, bundled_to_report
from nullspace_unlearn.data.folders import read_folder
from nullspace_unlearn.data.source import Source, apart

CLASSES, DOMAINS = ("car", "dog", "tree"), ("photo", "sketch")


@pytest.fixture(scope="module")
def images(small_images: Path) -> Source:
    return read_folder(small_images)


def names(some: Source) -> list[str]:
    return [picture.name for picture in some.pictures]


@pytest.mark.parametrize("shots, validation", [(1, 0), (2, 3), (4, 2), (6, 0), (3, 3)])
@pytest.mark.parametrize("seed", [0, 3])
def test_every_image_is_in_one_part_and_every_cell_has_its_share(
    images: Source, shots: int, validation: int, seed: int
) -> None:
    parts = images.split(shots, validation, seed)
    every = names(parts.given) + names(parts.validation) + names(parts.rest)
    assert sorted(every) == sorted(names(images)) and len(set(every)) == len(images)
    assert (parts.given.counts == shots).all()
    assert (parts.validation.counts == validation).all()
    assert torch.equal(parts.rest.counts, images.counts - shots - validation)
    for part in (parts.given, parts.validation, parts.rest):
        assert names(part) == sorted(names(part))
        assert (part.classes, part.domains) == (images.classes, images.domains)
        for name, c, d in zip(
            names(part), part.class_index.tolist(), part.domain_index.tolist(), strict=True
        ):
            assert name.startswith(f"{images.domains[d]}/{images.classes[c]}/")


def test_a_split_follows_from_the_seed(images: Source) -> None:
    one, again, other = (images.split(2, 2, seed) for seed in (0, 0, 1))
    for part in ("given", "validation", "rest"):
        assert names(getattr(one, part)) == names(getattr(again, part))
        assert names(getattr(one, part)) != names(getattr(other, part))


def test_the_training_draw_depends_on_nothing_else(small_images: Path, images: Source) -> None:
    drawn = names(images.split(2, 0).given)
    assert names(images.split(2, 3).given) == drawn
    assert set(drawn) < set(names(images.split(3, 0).given))  # more shots are more, not others
    # Nor on the other cells: without one class the rest is drawn as before.
    fewer = images.subset((images.class_index != 0).nonzero()[:, 0])
    listing = small_images.parent / "listing.txt"
    listing.write_text("\n".join(names(fewer)))
    left = names(read_folder(small_images, listing=listing).split(2, 0).given)
    assert left == [name for name in drawn if "/car/" not in name]


def test_draws_in_two_cells_are_not_the_same(images: Source) -> None:
    """Files go by the same names in every cell, so that draws that went by number would show."""
    drawn = images.split(3).given
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
    images: Source, shots: int, validation: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        images.split(shots, validation)


def test_classes_that_differ_between_domains_are_refused(images: Source) -> None:
    there = (images.class_index != 1) | (images.domain_index != 0)
    with pytest.raises(
        ValueError, match=r"differ .* no image of 'dog' in 'photo' \(1 such cells\); use --list"
    ):
        images.subset(there.nonzero()[:, 0]).split(1)
    images.split(1)  # control


# Bundled pictures.


def seeds(some: Source) -> set[int]:
    return {int(name.rpartition("/")[2]) for name in names(some)}


def test_bundled_pictures_are_so_many_of_every_cell() -> None:
    train, validation = bundled_to_learn(2, 1, 6, CLASSES, DOMAINS)
    assert train.counts.tolist() == [[2, 2]] * 3 and validation.counts.tolist() == [[1, 1]] * 3
    every = torch.cat([batch.images for some in (train, validation) for batch in read(some)])
    assert len(every.flatten(1).unique(dim=0)) == 18  # no picture twice
    again, none = bundled_to_learn(2, 0, 6, CLASSES, DOMAINS)
    other, _ = bundled_to_learn(2, 0, 7, CLASSES, DOMAINS)
    assert again.fingerprint == train.fingerprint != other.fingerprint  # control
    assert len(none) == 0 and not list(read(none))


def read(some: Source):  # type: ignore[no-untyped-def]
    return some.batches(lambda image: torch.tensor(list(image.tobytes()))[None, None].float())


def test_bundled_seeds_are_used_for_nothing_else() -> None:
    """No seed is drawn twice, whatever is asked for, nor one that figures are reported on."""
    drawn = [
        seeds(some)
        for seed in (0, 1, 998, 999)
        for some in bundled_to_learn(1000, 1000, seed, ("car",), ("photo",))
    ]
    every = set().union(*drawn)
    assert len(every) == sum(map(len, drawn)) == 8000
    first = min(seeds(bundled_to_report(1)))
    # Figures are reported from there on; far more pictures a cell than anyone draws lie between.
    assert first == 10_000_000
    assert min(every) >= first + 5_000_000
    # Real images of the closed-form benchmark: a millionth draw of eight, and those after it.
    assert max(every) < first + 1_000_000 * 8


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
    shots: int, validation: int, seed: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bundled_to_learn(shots, validation, seed)


# No image in two roles.


def test_images_that_were_learned_from_are_left_out(images: Source, tmp_path: Path) -> None:
    parts = images.split(2, 1)
    for picture in parts.given.pictures:  # the same bytes, by other names, elsewhere
        copy = tmp_path / picture.name.replace("/", "/x")
        copy.parent.mkdir(parents=True, exist_ok=True)
        with picture.open() as file:
            copy.write_bytes(file.read())
    elsewhere = read_folder(tmp_path)
    left, out = apart(images, elsewhere, None)
    assert out == 12 and torch.equal(left.counts, images.counts - 2)
    assert not set(names(left)) & set(names(parts.given))
    assert apart(images, elsewhere, parts.validation)[1] == 18
    assert apart(parts.rest, parts.given, parts.validation) == (parts.rest, 0)  # control
    with pytest.raises(ValueError, match="all 12 images to report on are also what is learned"):
        apart(elsewhere, parts.given)
