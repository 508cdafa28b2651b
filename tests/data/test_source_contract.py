"""What every reader of images must hold: one list of theorems, a line a reader.

A new kind of data inherits them by a function that writes the same twelve pictures in its layout.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from nullspace_unlearn.data import mini
from nullspace_unlearn.data.bundled import draw_bundled
from nullspace_unlearn.data.cifar import read_cifar
from nullspace_unlearn.data.find import open_source
from nullspace_unlearn.data.source import Source, apart

CLASSES, DOMAINS, EACH = ("car", "dog", "tree"), ("photo", "sketch"), 3
FIRST = 9_000_000


def picture(c: int, d: int, i: int, size: int = 64) -> Image.Image:
    return mini.render(CLASSES[c], DOMAINS[d], FIRST + i, size)


def png(c: int, d: int, i: int) -> bytes:
    buffer = io.BytesIO()
    picture(c, d, i).save(buffer, "PNG")
    return buffer.getvalue()


def tar(path: Path, files: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def cells(domains: int = len(DOMAINS)) -> list[tuple[int, int, int]]:
    return [(c, d, i) for d in range(domains) for c in range(len(CLASSES)) for i in range(EACH)]


def as_folder(root: Path) -> str:
    for c, d, i in cells():
        file = root / DOMAINS[d] / CLASSES[c] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(c, d, i))
    return str(root)


def as_class_folders(root: Path) -> str:
    as_folder(root)
    return ",".join(f"{name}={root / name}" for name in DOMAINS)


def as_one_domain(root: Path) -> str:
    return str(Path(as_folder(root)) / DOMAINS[0])


def as_shards(root: Path) -> str:
    for d, domain in enumerate(DOMAINS):
        files = [
            (f"{CLASSES[c]}.{i}.{suffix}", data)  # keys with dots
            for c in range(len(CLASSES))
            for i in range(EACH)
            for suffix, data in (("png", png(c, d, i)), ("cls", str(c).encode()))
        ]
        tar(root / domain / "0.tar", files)
    (root / "classnames.txt").write_text("\n".join(CLASSES))
    return str(root)


def as_joined_shards(root: Path) -> str:
    """Each domain's shards as one file, as `cat` makes it."""
    for d, domain in enumerate(DOMAINS):
        (root / domain).mkdir(parents=True, exist_ok=True)
        whole = b""
        for c, name in enumerate(CLASSES):
            some = [(f"{name}{i}.png", png(c, d, i)) for i in range(EACH)]
            tar(root / "part", some + [(f"{name}{i}.cls", b"%d" % c) for i in range(EACH)])
            whole += (root / "part").read_bytes()
            (root / "part").unlink()
        (root / domain / "0.tar").write_bytes(whole)
    (root / "classnames.txt").write_text("\n".join(CLASSES))
    return str(root)


def as_cifar(root: Path) -> str:
    root.mkdir(parents=True, exist_ok=True)
    (root / "batches.meta.txt").write_text("\n".join(CLASSES))
    for file in ("data_batch_1.bin", "test_batch.bin"):
        records = [
            np.concatenate([[c], np.asarray(picture(c, 0, i, 32)).transpose(2, 0, 1).ravel()])
            for c, _, i in cells(1)
        ]
        np.stack(records).astype(np.uint8).tofile(root / file)
    return str(root)


@dataclass(frozen=True)
class Reader:
    """A kind of data.

    Attributes:
        write: Writes the pictures below a folder; gives what a user then names.
        domains: The keys of its domains.
        size: Side of its pictures.
        change: Changes the first picture, its name and size left as they are.
    """

    write: Callable[[Path], str]
    domains: tuple[str, ...] = DOMAINS
    size: int = 64
    change: Callable[[Source], None] = lambda source: _turn(source)


def _turn(source: Source) -> None:
    """Another picture in the place of the first, of as many bytes."""
    first = source.pictures[0]
    assert first.holder is not None
    file = first.holder[1]
    start, length = first.place or (0, file.stat().st_size)
    data = bytearray(file.read_bytes())
    data[start + length - 1] ^= 1
    file.write_bytes(data)


READERS = {
    "folder": Reader(as_folder),
    "folders of classes": Reader(as_class_folders),
    "one domain": Reader(as_one_domain, ("all",)),
    "shards": Reader(as_shards),
    "joined shards": Reader(as_joined_shards),
    "CIFAR": Reader(as_cifar, ("all",), 32),
}


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest) -> Reader:
    return READERS[request.param]


@pytest.fixture
def source(reader: Reader, tmp_path: Path) -> Source:
    return open_source(reader.write(tmp_path / "data"))


def pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def contents(some: Source) -> list[str]:
    """The pixels of each image, by which the tests know it."""
    images = [image for batch in some.batches(pixels, batch_size=4) for image in batch.images]
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in images]


def test_the_same_grid_in_the_same_order_through_every_kind(reader: Reader, source: Source) -> None:
    assert (source.classes, source.domains) == (CLASSES, reader.domains)
    expected = cells(len(reader.domains))
    assert source.class_index.tolist() == [c for c, _, _ in expected]
    assert source.domain_index.tolist() == [d for _, d, _ in expected]
    assert source.counts.tolist() == [[EACH] * len(reader.domains)] * len(CLASSES)
    assert source.absent == () and source.twice == () and len(source) == len(expected)
    assert source.features is None and not any("cannot" in note for note in source.notes)


def test_batches_are_the_images_read_one_by_one(reader: Reader, source: Source) -> None:
    """Oracle: the renderer that drew them."""
    wanted = [pixels(picture(c, d, i, reader.size)) for c, d, i in cells(len(reader.domains))]
    for batch_size in (1, 4, 100):
        batches = list(source.batches(pixels, batch_size))
        assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(len(source)))
        assert torch.equal(torch.cat([batch.images for batch in batches]), torch.stack(wanted))
    assert all(
        torch.equal(pixels(p.decode()), w) for p, w in zip(source.pictures, wanted, strict=True)
    )
    assert len(set(contents(source))) == len(source)  # control: all differ


def test_parts_are_parts(source: Source) -> None:
    known = contents(source)
    for each in (1, 2):
        some = source.few(each, seed=3)
        assert (some.counts == each).all() and some.classes == source.classes
        assert set(contents(some)) < set(known)
        assert contents(some) == [content for content in known if content in contents(some)]
    assert contents(source.few(1, 0)) != contents(source.few(1, 1))  # control
    parts = source.split(1, 1, seed=2)
    pieces = [contents(part) for part in parts]
    assert sorted(sum(pieces, [])) == sorted(known)
    assert all((part.counts == 1).all() for part in parts)
    share, others = source.held_out(1 / 3)
    assert (
        sorted(contents(share) + contents(others)) == sorted(known) and len(share) == len(known) / 3
    )
    chosen = torch.tensor([0, 2, 5])
    assert contents(source.subset(chosen)) == [known[i] for i in chosen]
    cut = source.cut([0, 2], range(len(source.domains)))
    assert cut.classes == ("car", "tree") and set(cut.class_index.tolist()) == {0, 1}
    assert contents(cut) == [known[i] for i, c in enumerate(source.class_index.tolist()) if c != 1]


def test_the_fingerprint_is_of_contents_not_of_places(
    reader: Reader, source: Source, tmp_path: Path
) -> None:
    elsewhere = open_source(reader.write(tmp_path / "deep" / "elsewhere"))
    assert elsewhere.fingerprint == source.fingerprint
    assert source.subset(torch.arange(1, len(source))).fingerprint != source.fingerprint
    assert replace(source, classes=("car", "dog", "oak")).fingerprint != source.fingerprint
    reader.change(elsewhere)
    again = replace(elsewhere)  # the fingerprint of a source is taken once
    assert again.fingerprint.differences(source.fingerprint)
    assert len(again.fingerprint.differences(source.fingerprint)) == 1


def test_names_say_nothing_of_the_place(source: Source, tmp_path: Path) -> None:
    names = [item.name for item in source.pictures]
    assert len(set(names)) == len(names) and not any(str(tmp_path) in name for name in names)
    assert str(tmp_path) not in source.name
    assert all(str(tmp_path) in str(item) for item in source.pictures)  # control: messages do


def test_what_is_learned_from_is_not_reported_on(
    reader: Reader, source: Source, tmp_path: Path
) -> None:
    """Through any kind, wherever it lies: the same bytes are the same image."""
    learned = open_source(reader.write(tmp_path / "copy")).few(1)
    left, out = apart(source, learned)
    assert out == len(learned) and not set(contents(left)) & set(contents(learned))
    assert apart(left, learned) == (left, 0)  # control
    if reader.size == 64:
        other = as_shards if reader.write is not as_shards else as_folder
        assert apart(source, open_source(other(tmp_path / "other")).few(1))[1] == len(learned)


def test_bundled_pictures_hold_it_too(tmp_path: Path) -> None:
    drawn = draw_bundled(FIRST, EACH, CLASSES, DOMAINS)
    folder = open_source(as_folder(tmp_path))
    assert (drawn.classes, drawn.domains) == (folder.classes, folder.domains)
    assert torch.equal(drawn.counts, folder.counts)
    assert sorted(contents(drawn)) == sorted(contents(folder))
    assert drawn.fingerprint == draw_bundled(FIRST, EACH, CLASSES, DOMAINS).fingerprint
    assert drawn.fingerprint != draw_bundled(FIRST + 1, EACH, CLASSES, DOMAINS).fingerprint
    assert apart(drawn, drawn.few(1))[1] == 6
    assert sorted(sum(map(contents, drawn.split(1, 1)), [])) == sorted(contents(drawn))


def test_feature_files_hold_what_can_be_held_of_features(tmp_path: Path) -> None:
    index = torch.tensor(cells())
    rows = np.random.default_rng(0).normal(size=(len(index), 4))
    arrays = {"image_features": rows, "labels": index[:, 0].numpy(), "class_names": CLASSES}
    np.savez(tmp_path / "f.npz", **arrays, domains=index[:, 1].numpy(), domain_names=DOMAINS)
    found = open_source(tmp_path / "f.npz")
    assert (found.classes, found.domains) == (CLASSES, DOMAINS)
    assert found.counts.tolist() == [[EACH] * 2] * 3
    few, parts = found.few(1), found.split(1, 1)
    assert few.features is not None and len(few.features) == len(few) == 6
    rebuilt = torch.cat([part.features.embeddings for part in parts if part.features])
    assert sorted(rebuilt[:, 0].tolist()) == pytest.approx(sorted(rows[:, 0].tolist()))
    np.savez(tmp_path / "g.npz", **{**arrays, "image_features": rows + 1})
    assert open_source(tmp_path / "g.npz").fingerprint != found.fingerprint
    with pytest.raises(ValueError, match="holds features, and images are needed"):
        next(found.batches(pixels))


def test_each_kind_says_what_it_was_taken_for(tmp_path: Path) -> None:
    kinds = {name: open_source(r.write(tmp_path / name)).kind for name, r in READERS.items()}
    assert len(set(kinds.values())) == len(READERS) - 1  # joined shards are shards
    assert read_cifar(tmp_path / "CIFAR", "train").kind != kinds["CIFAR"]
