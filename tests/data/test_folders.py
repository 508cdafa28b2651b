"""Folders of images: what is found, what is read, what is skipped and said so."""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder

from nullspace_unlearn.data.folders import read_folder
from nullspace_unlearn.data.source import Skipped, Source

RED = (255, 0, 0)


def put(root: Path, *names: str, colour: tuple[int, int, int] = RED) -> Path:
    """Write small pictures at these paths below root."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), colour).save(root / name, format="png")
    return root


def pixels(image: Image.Image) -> Tensor:
    """A preprocessing that keeps the pixels of a 4 x 4 picture."""
    assert image.mode == "RGB"
    return torch.from_numpy(np.array(image.resize((4, 4), Image.Resampling.NEAREST))).permute(
        2, 0, 1
    )


def read(source: Source, **options: int) -> tuple[Tensor, Tensor, list[Skipped]]:
    batches = list(source.batches(pixels, **options))
    images = [batch.images for batch in batches if len(batch.indices)]
    skipped = [file for batch in batches for file in batch.skipped]
    return torch.cat(images), torch.cat([batch.indices for batch in batches]), skipped


# Finding.


@pytest.mark.parametrize("nested", [False, True])
def test_each_domain_is_what_torchvision_finds(tmp_path: Path, nested: bool) -> None:
    put(
        tmp_path, *(f"{d}/{c}/{i}.png" for d in ("b", "a") for c in ("dog", "cat") for i in (10, 9))
    )
    put(tmp_path, "a/cat/x.JPG", "a/cat/y.webp", "a/dog/w z.jpeg")
    (tmp_path / "a/cat/notes.txt").write_text("not an image")
    (tmp_path / "readme.md").write_text("not a domain")
    if nested:
        put(tmp_path, "a/cat/more/deep/1.png", "a/cat/0.png")
    found = read_folder(tmp_path)
    assert found.domains == ("a", "b")
    for d, domain in enumerate(found.domains):
        oracle = ImageFolder(str(tmp_path / domain))
        assert found.classes == tuple(oracle.classes)
        rows = (found.domain_index == d).nonzero()[:, 0].tolist()
        ours = [(str(found.pictures[i]), int(found.class_index[i])) for i in rows]
        assert sorted(ours) == sorted(oracle.samples)
        if not nested:
            assert ours == oracle.samples
    put(tmp_path, "a/cat/new.png")
    assert len(read_folder(tmp_path)) == len(found) + 1


def test_the_order_depends_on_names_alone(tmp_path: Path) -> None:
    names = [f"{d}/{c}/{i}.png" for d in "yx" for c in "ba" for i in "312"]
    first = read_folder(put(tmp_path / "first", *names))
    second = read_folder(put(tmp_path / "second", *reversed(names)))
    relative = [[p.name for p in s.pictures] for s in (first, second)]
    assert relative[0] == relative[1] == sorted(names)


def test_classes_may_be_absent_from_a_domain(tmp_path: Path) -> None:
    put(tmp_path, "a/cat/1.png", "a/cat/2.png", "b/dog/1.png")
    found = read_folder(tmp_path)
    assert found.counts.tolist() == [[2, 0], [0, 1]]
    assert found.absent == (("cat", "b"), ("dog", "a"))
    put(tmp_path, "b/cat/1.png", "a/dog/1.png")
    assert read_folder(tmp_path).absent == ()


def test_prompts_have_a_word_for_every_domain(tmp_path: Path) -> None:
    put(tmp_path, *(f"{d}/{c}/1.png" for d in ("art_painting", "line_art") for c in "xy"))
    found = read_folder(tmp_path, {"art_painting": "painting", "elsewhere": "x"})
    assert found.domains == ("art_painting", "line_art")
    assert found.domain_words == ("painting", "line art")


def test_hidden_names_links_and_pipes(tmp_path: Path) -> None:
    put(tmp_path, "a/cat/1.png", "a/dog/1.png")
    plain = read_folder(tmp_path).pictures
    put(tmp_path, ".git/cat/1.png", "a/.ipynb_checkpoints/1.png", "a/cat/._1.png", "a/cat/.t/2.png")
    os.symlink(tmp_path / "a/cat", tmp_path / "a/cat/loop")
    os.symlink(tmp_path / "nowhere.png", tmp_path / "a/cat/broken.png")
    os.mkfifo(tmp_path / "a/cat/pipe.png")
    assert read_folder(tmp_path).pictures == plain
    put(tmp_path / "elsewhere", "2.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "a/cat/linked")
    assert len(read_folder(tmp_path)) == len(plain) + 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "is empty"),
        (["1.png"], "holds no images; the layout is root/<domain>/<class>/<image>"),
        (["a/cat/1.png", "b/cat/1.png"], "images of 1 class, 'cat'; at least 2"),
        (["a/cat/1.png", "b/cat /1.png"], "class named twice: 'cat' and 'cat '"),
    ],
)
def test_refused_folders(tmp_path: Path, names: list[str], message: str) -> None:
    put(tmp_path, *names)
    with pytest.raises(ValueError) as error:
        read_folder(tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("file", "missing"):
        with pytest.raises(ValueError, match="is not a folder"):
            read_folder(tmp_path / name)


@pytest.mark.parametrize("closed", ["", "b", "a/dog", "a/dog/deep"])
def test_a_folder_that_cannot_be_opened_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    put(tmp_path, "a/cat/1.png", "a/dog/1.png", "a/dog/deep/2.png", "b/cat/1.png")
    assert len(read_folder(tmp_path)) == 4

    def refusing(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def call(path: Any = ".") -> Any:
            if Path(path) == tmp_path / closed:
                raise PermissionError(13, "Permission denied", str(path))
            return original(path)

        return call

    monkeypatch.setattr(os, "scandir", refusing(os.scandir))
    monkeypatch.setattr(os, "listdir", refusing(os.listdir))
    with pytest.raises(ValueError, match=f"{closed}' cannot be read: Permission denied"):
        read_folder(tmp_path)


# Listings.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return put(tmp_path / "root", "a/cat/1.png", "a/cat/2.png", "a/dog/1.png", "b/cat/my cat 7.png")


@pytest.mark.parametrize(
    "text",
    [
        "a/cat/1.png\na/dog/1.png\nb/cat/my cat 7.png\n",
        "a/cat/1.png 1\na/dog/1.png 2\nb/cat/my cat 7.png 1",
        "\ufeffb/cat/my cat 7.png\t0\r\n\r\n  \r\na/dog/1.png   12\r\n./a/cat/1.png\r\na/cat/1.png",
    ],
    ids=["plain", "Dassl", "Windows, blanks, twice"],
)
def test_a_listing_restricts(folder: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "list.txt").write_bytes(text.encode())
    found = read_folder(folder, listing=tmp_path / "list.txt")
    everything = read_folder(folder)
    assert [p for p in everything.pictures if not p.name.endswith("2.png")] == list(found.pictures)
    assert found.classes == everything.classes
    assert len(everything) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no files"),
        ("\n \n", "names no files"),
        ("a/cat/1.png\na/dog/8.png\na/dog/9.png", "2 files that are not in .*first 'a/dog/8.png'"),
        ("a/cat/1.png\n../../secret/1.png", "line 2: '../../secret/1.png' is not a path"),
        ("a/cat/../../../x.png", "line 1"),
        ("/etc/cat/passwd", "line 1"),
        ("cat/1.png", "names 1 files that are not in"),
        ("1.png", "line 1"),
        ("a/cat/\0.png", "line 1"),
        ("a/cat/1.png", "1 class"),
    ],
)
def test_refused_listings(folder: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_folder(folder, listing=tmp_path / "list.txt")


def test_unreadable_listings(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00a")
    for name in ("binary.txt", "missing.txt", "root"):
        with pytest.raises(ValueError, match="cannot be read"):
            read_folder(folder, listing=tmp_path / name)


# Drawing a few.


def cell_paths(source: Source) -> dict[tuple[str, str], list[str]]:
    """The files of each cell by its names, as the labels have it."""
    found: dict[tuple[str, str], list[str]] = {}
    columns = (source.class_index.tolist(), source.domain_index.tolist())
    for picture, c, d in zip(source.pictures, *columns, strict=True):
        cell = (source.classes[c], source.domains[d])
        domain, class_, name = picture.name.split("/")
        assert (class_, domain) == cell
        found.setdefault(cell, []).append(name)
    return found


def uneven(*extra: str) -> list[str]:
    sizes = {"a/cat": 9, "a/dog": 2, "b/cat": 5, "b/dog": 1}
    return [f"{cell}/{i:02}.png" for cell, n in sizes.items() for i in range(n)] + list(extra)


def test_every_cell_keeps_so_many_or_all_it_has(tmp_path: Path) -> None:
    found = read_folder(put(tmp_path, *uneven()))
    everything = cell_paths(found)
    for each in range(1, 11):
        drawn = found.few(each)
        assert (drawn.classes, drawn.domains) == (found.classes, found.domains)
        assert torch.equal(drawn.counts, found.counts.clamp(max=each))
        for cell, names in cell_paths(drawn).items():
            assert set(names) <= set(everything[cell]) and names == sorted(names)
        assert list(drawn.pictures) == [path for path in found.pictures if path in drawn.pictures]
    assert found.few(9).pictures == found.pictures


def test_the_draw_in_a_cell_depends_on_the_seed_and_on_nothing_elsewhere(tmp_path: Path) -> None:
    found = read_folder(put(tmp_path / "few", *uneven()))
    drawn = found.few(3, seed=5)
    assert found.few(3, seed=5).pictures == drawn.pictures
    others = ("a/dog/99.png", "b/ant/1.png", "b/ant/2.png", "0/cat/1.png")
    more = read_folder(put(tmp_path / "more", *uneven(*others)))
    assert more.classes != found.classes and more.domains != found.domains
    again = cell_paths(more.few(3, seed=5))
    for cell in (("cat", "a"), ("cat", "b"), ("dog", "b")):
        assert again[cell] == cell_paths(drawn)[cell]
    # The controls: other seeds, and other cells of the same size, draw other files.
    assert len({tuple(cell_paths(found.few(3, seed=s))["cat", "a"]) for s in range(20)}) > 10
    same = [f"{d}/{c}/{i}.png" for d in "ab" for c in ("cat", "dog") for i in range(9)]
    alike = read_folder(put(tmp_path / "alike", *same))
    assert len({tuple(names) for names in cell_paths(alike.few(3)).values()}) > 1


def test_every_image_may_be_drawn(tmp_path: Path) -> None:
    found = read_folder(put(tmp_path, *uneven()))
    seen = {path for seed in range(60) for path in found.few(1, seed).pictures}
    assert seen == set(found.pictures)


@pytest.mark.parametrize("each", [0, -1])
def test_no_image_cannot_be_drawn(tmp_path: Path, each: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1 image a cell must be drawn, got {each}"):
        read_folder(put(tmp_path, *uneven())).few(each)


# Reading. Every kind of file people have: its bytes, and the top left colour or why it is skipped.


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def flat(mode: str, colour: object, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new(mode, size, colour)  # type: ignore[arg-type]


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))


def rotated() -> bytes:
    image = flat("RGB", (0, 0, 255), (16, 8))
    image.paste(RED, (0, 0, 8, 8))  # red left, blue right: turned by EXIF, red comes to the bottom
    exif = Image.Exif()
    exif[0x0112] = 8
    return saved(image, "PNG", exif=exif)


def palette() -> bytes:
    image = flat("P", 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    return saved(image, "PNG", transparency=bytes([0, 255]))


def animation(kind: str) -> bytes:
    frames = [flat("RGB", RED), flat("RGB", (0, 255, 0))]
    return saved(
        frames[0],
        kind,
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if kind == "WEBP" else {}),
    )


def bomb() -> bytes:
    """A PNG that says it is 60,000 x 60,000 and is a few bytes long."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + b"\0\0\0\0IEND\xaeB`\x82"
    )


NASTY: dict[str, tuple[Callable[[], bytes], tuple[int, int, int] | str]] = {
    "plain": (lambda: saved(flat("RGB", RED), "PNG"), RED),
    "one pixel": (lambda: saved(flat("RGB", RED, (1, 1)), "PNG"), RED),
    "grey": (lambda: saved(flat("L", 100), "PNG"), (100, 100, 100)),
    "grey, 16 bit": (
        lambda: saved(Image.fromarray(np.full((8, 8), 100 * 257, np.uint16)), "PNG"),
        (100, 100, 100),
    ),
    "black and white": (lambda: saved(flat("1", 1), "PNG"), (255, 255, 255)),
    "CMYK": (lambda: saved(flat("CMYK", (0, 255, 255, 0)), "TIFF"), RED),
    "clear palette": (palette, (255, 255, 255)),
    "half clear": (lambda: saved(flat("RGBA", (255, 0, 0, 0)), "PNG"), (255, 255, 255)),
    "clear grey": (lambda: saved(flat("LA", (0, 0)), "PNG"), (255, 255, 255)),
    "opaque": (lambda: saved(flat("RGBA", (255, 0, 0, 255)), "PNG"), RED),
    "animated WebP": (lambda: animation("WEBP"), RED),
    "animated PNG": (lambda: animation("PNG"), RED),
    "GIF by another name": (lambda: animation("GIF"), RED),
    "turned": (rotated, (0, 0, 255)),
    "truncated JPEG": (lambda: saved(noise(), "JPEG")[:-700], "truncated"),
    "truncated PNG": (lambda: saved(noise(), "PNG")[:-700], "truncated"),
    "zero bytes": (lambda: b"", "cannot identify"),
    "text": (lambda: b"<html>404 not found</html>", "cannot identify"),
    "bomb": (bomb, "decompression bomb"),
    "thread": (lambda: saved(flat("RGB", RED, (1, 5000)), "PNG"), "too thin"),
}


@pytest.mark.parametrize("kind", NASTY)
def test_every_kind_of_file_is_read_or_named(tmp_path: Path, kind: str) -> None:
    make, expected = NASTY[kind]
    put(tmp_path, "a/cat/0.png", "a/dog/0.png", colour=(1, 2, 3))
    (tmp_path / "a/cat/1.png").write_bytes(make())
    images, indices, skipped = read(read_folder(tmp_path))
    assert indices[0] == 0 and indices[-1] == 2
    if isinstance(expected, str):
        assert indices.tolist() == [0, 2]
        assert [file.picture.name for file in skipped] == ["a/cat/1.png"]
        assert expected in skipped[0].reason and "\n" not in skipped[0].reason
    else:
        assert indices.tolist() == [0, 1, 2] and not skipped
        assert images[1, :, 0, 0].tolist() == list(expected)
    assert images[-1, :, 0, 0].tolist() == [1, 2, 3]


def test_unreadable_by_permission_or_gone(tmp_path: Path) -> None:
    found = read_folder(put(tmp_path, "a/cat/0.png", "a/cat/1.png", "a/dog/0.png"))
    (tmp_path / "a/cat/1.png").unlink()
    _, indices, skipped = read(found)
    assert indices.tolist() == [0, 2] and skipped[0].picture == found.pictures[1]


def test_a_cell_that_loses_every_image_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, "a/cat/0.png", "a/dog/0.png", "a/dog/1.png")
    (tmp_path / "a/dog/0.png").write_bytes(b"")
    assert len(read(read_folder(tmp_path))[1]) == 2
    (tmp_path / "a/dog/1.png").write_bytes(b"")
    message = "no readable image is left of class 'dog' in domain 'a'.*1 such cells.*0.png"
    with pytest.raises(ValueError, match=message):
        read(read_folder(tmp_path))
    (tmp_path / "a/cat/0.png").write_bytes(b"")
    with pytest.raises(ValueError, match="2 such cells"):
        read(read_folder(tmp_path), batch_size=1)


def test_a_fault_of_the_preprocessing_is_not_the_files(tmp_path: Path) -> None:
    def broken(image: Image.Image) -> Tensor:
        raise OSError("out of order")

    found = read_folder(put(tmp_path, "a/cat/0.png", "a/dog/0.png"))
    with pytest.raises(OSError, match="out of order"):
        list(found.batches(broken))


@pytest.fixture(scope="module")
def eleven(tmp_path_factory: pytest.TempPathFactory) -> Source:
    root = tmp_path_factory.mktemp("eleven")
    for i in range(11):
        put(root, f"a/{'cat' if i < 6 else 'dog'}/{i:02}.png", colour=(i, 0, 0))
    (root / "a/cat/03.png").write_bytes(b"")
    return read_folder(root)


@settings(max_examples=20, deadline=None)
@given(batch_size=st.integers(1, 14), workers=st.integers(1, 4))
def test_batches_hold_every_image_once_in_order(
    eleven: Source, batch_size: int, workers: int
) -> None:
    batches = list(eleven.batches(pixels, batch_size, workers))
    assert len(batches) == -(-11 // batch_size)
    images, indices, skipped = read(eleven, batch_size=batch_size, workers=workers)
    assert indices.tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    assert torch.equal(images[:, 0, 0, 0].long(), indices)
    assert [file.picture for file in skipped] == [eleven.pictures[3]]


def test_leaving_early_leaves_no_thread_behind(eleven: Source) -> None:
    others = set(threading.enumerate())
    batches = eleven.batches(pixels, 2, 3)
    next(batches)
    started = set(threading.enumerate()) - others
    assert started
    batches.close()  # type: ignore[attr-defined]
    for thread in started:
        thread.join(5)
        assert not thread.is_alive()


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"workers": 0}])
def test_numbers_out_of_range(eleven: Source, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        read(eleven, **options)


FOUR = ("photo/cat/a.png", "photo/dog/a.png", "sketch/cat/a.png", "sketch/dog/a.png")


@pytest.mark.parametrize("change", ["content", "size and time alike", "name", "cell", "subset"])
def test_a_fingerprint_tells_images_apart(tmp_path: Path, change: str) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    before = read_folder(put(here, *FOUR))
    assert before.fingerprint == read_folder(put(there, *FOUR)).fingerprint  # wherever they lie
    file, facts = there / FOUR[1], {"contents"}
    stat = file.stat()
    if change == "content":
        put(there, FOUR[1], colour=(0, 0, 255))
    elif change == "size and time alike":
        file.write_bytes(file.read_bytes()[::-1])
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    elif change == "name":
        file.rename(file.with_name("b.png"))
        facts = set()  # which is the same images
    elif change == "cell":
        (there / "sketch").rename(there / "drawn")
        facts = {"cells"}
    after = read_folder(there)
    if change == "subset":
        after, facts = after.subset(torch.tensor([0, 2, 3])), {"count", "cells", "contents"}
    differences = before.fingerprint.differences(after.fingerprint)
    assert {line.partition(":")[0] for line in differences} == facts
