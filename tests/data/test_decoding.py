"""One way to decode: what a viewer shows, or a reason; no other program is started."""

from __future__ import annotations

import io
import struct
import tarfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image, features
from torch import Tensor

from nullspace_unlearn.data import picture
from nullspace_unlearn.data.folders import read_folder
from nullspace_unlearn.data.picture import SUFFIXES, being_read, decode
from nullspace_unlearn.data.shards import read_shards
from nullspace_unlearn.data.source import Source

RED, BLUE = (255, 0, 0), (0, 0, 255)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def red(kind: str, mode: str = "RGB") -> bytes:
    return saved(Image.new("RGB", (8, 8), RED).convert(mode), kind)


def corner(image: Image.Image) -> Tensor:
    return torch.tensor(image.getpixel((0, 0))).float()[:, None, None]


def read(source: Source) -> tuple[list[list[int]], dict[str, str]]:
    """The corner of each image that is read, and why others are not."""
    batches = list(source.batches(corner, part=True))
    images = [image[:, 0, 0].int().tolist() for batch in batches for image in batch.images]
    return images, {one.picture.name: one.reason for b in batches for one in b.skipped}


def folder(root: Path, **files: bytes) -> Path:
    """A folder of two classes, of which one holds these files beside a plain one."""
    for name, data in {"b/c.png": red("PNG"), "a/0.png": red("PNG")}.items():
        (root / "photo" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "photo" / name).write_bytes(data)
    for name, data in files.items():
        (root / "photo" / "a" / name.replace("_", ".")).write_bytes(data)
    return root


KINDS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".ppm": "PPM",
    ".pgm": "PPM", ".pbm": "PPM", ".pnm": "PPM", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF",
    ".webp": "WEBP", ".gif": "GIF", ".avif": "AVIF",
}  # fmt: skip


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_ending_that_counts_is_read(tmp_path: Path, suffix: str) -> None:
    if suffix == ".avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    mode = {".pgm": "L", ".pbm": "1"}.get(suffix, "RGB")
    file = folder(tmp_path) / "photo" / "a" / f"x{suffix.upper()}"
    file.write_bytes(red(KINDS[suffix], mode))
    images, skipped = read(read_folder(tmp_path))
    assert len(images) == 3 and not skipped
    if mode == "RGB":
        assert all(abs(a - b) < 8 for a, b in zip(images[1], RED, strict=True))  # JPEG rounds


def test_classes_whose_files_do_not_count_are_named(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / "photo/c").mkdir()
    (tmp_path / "photo/c/x.heic").write_bytes(b"")
    found = read_folder(tmp_path)
    assert found.classes == ("a", "b")
    assert "hold no image by its ending are left out: photo/c (.heic)" in found.notes[0]
    (tmp_path / "photo/c/x.png").write_bytes(red("PNG"))
    assert not read_folder(tmp_path).notes  # control


@pytest.mark.parametrize("place", ["folder", "shard"])
def test_postscript_starts_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    started: list[object] = []

    def ghostscript(*given: object, **more: object) -> object:
        started.append(given)
        return Image.new("RGB", (8, 8), RED).im

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    eps = red("EPS")
    with Image.open(io.BytesIO(eps)) as image:  # control: Pillow alone would
        image.load()
    assert started.pop() and not started
    if place == "folder":
        source = read_folder(folder(tmp_path, x_jpg=eps))
    else:
        with tarfile.open(tmp_path / "0.tar", "w") as tar:
            images = {"a.jpg": eps, "b.png": red("PNG"), "c.png": red("PNG")}
            labels = {"a.cls": b"0", "b.cls": b"1", "c.cls": b"0"}
            for name, data in {**images, **labels}.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        (tmp_path / "classnames.txt").write_text("a\nb\n")
        source = read_shards(tmp_path)
    seen, skipped = read(source)
    assert len(seen) == 2 and list(skipped.values()) == ["cannot identify image file"]
    assert not started


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I4s", len(data), name) + data + struct.pack(">I", zlib.crc32(name + data))


def with_chunk(name: bytes, data: bytes) -> bytes:
    """A red PNG with a chunk before its pixels."""
    plain = saved(Image.new("RGB", (8, 8), RED), "PNG")
    place = plain.index(b"IDAT") - 4
    return plain[:place] + chunk(name, data) + plain[place:]


TAGS: dict[str, Callable[[], bytes]] = {
    "EXIF of noise": lambda: with_chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40),
    "EXIF cut short": lambda: with_chunk(b"eXIf", b"II*\0"),
    "EXIF of nothing": lambda: with_chunk(b"eXIf", b""),
    "much text": lambda: with_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(3 << 20))),
    "damaged text": lambda: with_chunk(b"zTXt", b"k\0\0nothing"),
    "many texts": lambda: with_chunk(b"tEXt", b"k\0" + b"x" * (1 << 20)),
    "damaged profile": lambda: with_chunk(b"iCCP", b"k\0\0nothing"),
}


@pytest.mark.parametrize("kind", TAGS)
def test_broken_tags_do_not_hide_a_picture(tmp_path: Path, kind: str) -> None:
    images, skipped = read(read_folder(folder(tmp_path, x_png=TAGS[kind]())))
    assert images == [[*RED]] * 3 and not skipped


def test_damaged_pixels_are_still_damage(tmp_path: Path) -> None:
    data = with_chunk(b"tEXt", b"k\0v")
    at = data.index(b"IDAT") + 8
    damaged = data[:at] + bytes(len(data) - at)
    _, skipped = read(read_folder(folder(tmp_path, x_png=damaged)))
    assert list(skipped) == ["photo/a/x.png"]


@pytest.mark.parametrize(
    "array, shown",
    [
        (np.full((8, 8), 100 * 257, np.uint16), [100] * 3),
        (np.full((8, 8), 200, np.uint16), [0] * 3),  # a dark picture, as a viewer shows it
        (np.full((8, 8), 70_000, np.int32), "32-bit numbers have no agreed colours"),
        (np.full((8, 8), 0.5, np.float32), "floating-point numbers have no agreed colours"),
    ],
)
def test_numbers_that_are_no_colours_are_named(
    tmp_path: Path, array: np.ndarray, shown: list[int] | str
) -> None:
    data = saved(Image.fromarray(array), "PNG" if array.dtype == np.uint16 else "TIFF")
    images, skipped = read(read_folder(folder(tmp_path, x_tif=data)))
    if isinstance(shown, str):
        assert skipped == {"photo/a/x.tif": shown}
    else:
        assert images[1] == shown and not skipped


def test_pixels_are_limited_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picture, "MOST_PIXELS", 8 * 8)
    source = read_folder(folder(tmp_path, x_png=saved(Image.new("RGB", (9, 8), RED), "PNG")))
    images, skipped = read(source)
    assert len(images) == 2  # control: those of 8 x 8 are read
    assert skipped == {"photo/a/x.png": "9 x 8 pixels are too many for a picture, 64 allowed"}
    monkeypatch.setattr(picture, "_MOST_BYTES", 10)
    with pytest.raises(ValueError, match="too many bytes for a picture, 10 allowed"):
        decode(io.BytesIO(red("PNG")))


def test_a_decoders_warning_can_name_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = read_folder(folder(tmp_path, y_png=b"not an image"))
    named: list[str | None] = []
    original = Image.open

    def warning(*given: object, **more: object) -> Image.Image:
        warnings.warn("odd", stacklevel=1)
        return original(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "open", warning)
    monkeypatch.setattr(warnings, "warn", lambda *_, **__: named.append(being_read()))
    read(source)
    assert sorted(filter(None, named)) == ["photo/a/0.png", "photo/a/y.png", "photo/b/c.png"]
    assert being_read() is None
