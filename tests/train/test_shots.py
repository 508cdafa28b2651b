"""Images are the same wherever they are read."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from PIL import Image

import nullspace_unlearn as nsu
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data.folders import read_folder
from nullspace_unlearn.data.source import Source
from nullspace_unlearn.train import shots as module
from nullspace_unlearn.train.shots import from_source, from_tensors


@pytest.fixture(scope="module")
def clip() -> Clip:
    return nsu.load("nsu-mini", device="cpu")


@pytest.fixture(scope="module")
def images(small_images: Path) -> Source:
    return read_folder(small_images)


def names(some: Source) -> list[str]:
    return [picture.name for picture in some.pictures]


# Images from files.


def test_memory_and_disk_give_the_same_images(
    clip: Clip, images: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Oracle: Pillow and the model's own preprocessing."""
    held = from_source(clip, images)
    opened: list[Path] = []
    read = Image.open
    monkeypatch.setattr(Image, "open", lambda f, **k: opened.append(f) or read(f, **k))
    monkeypatch.setattr(module, "_IN_MEMORY", 0)
    lazy = from_source(clip, images)
    assert not opened
    chosen = torch.tensor([5, 0, 41, 5, 17])
    expected = torch.stack(
        [clip.preprocess(read(images.pictures[i].path).convert("RGB")) for i in chosen]
    )
    for some in (held, lazy, lazy):
        assert torch.equal(some.read(chosen), expected)
        assert some.read(chosen[:0]).shape == (0, 3, 64, 64)
        assert torch.equal(some.labels, images.class_index) and len(some) == len(images)
        assert torch.equal(some.domains, images.domain_index)
    assert len(opened) == 10
    facts = dict(images.fingerprint.facts)
    said = {"images": images.name, "files": names(images), "contents": facts}
    assert held.source == lazy.source == said
    assert not torch.equal(held.read(chosen), held.read(chosen.flip(0)))  # control


def test_a_subset_is_those_images(clip: Clip, images: Source) -> None:
    whole = from_source(clip, images)
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
    clip: Clip, images: Source, memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for picture in images.pictures[::5]:
        copy = tmp_path / picture.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(picture.open().read())
    damaged = sorted(tmp_path.rglob("*.png"))[3]
    monkeypatch.setattr(module, "_IN_MEMORY", memory)
    whole = from_source(clip, read_folder(tmp_path))
    assert whole.read(torch.arange(len(whole))).isfinite().all()  # control
    damaged.write_bytes(b"not an image")
    with pytest.raises(ValueError, match=rf"{damaged.name}' cannot be read: .*; take it out"):
        some = from_source(clip, read_folder(tmp_path))
        some.read(torch.arange(len(some)))


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
