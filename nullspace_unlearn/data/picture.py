"""`Picture`: one image, wherever it lies; its bytes read once and decoded one way."""

from __future__ import annotations

import io
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".tif",
    ".tiff", ".webp", ".gif", ".avif",
)  # fmt: skip
"""File names that count as images; case does not matter."""

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "AVIF")
"""What an image file may hold, whatever its name: EPS, for one, would start another program."""

MOST_PIXELS = 89_478_485
"""Of an image: what Pillow warns of. Decoding takes some ten bytes a pixel."""

_MOST_BYTES = 1 << 28  # of an image file
# Resized to the model's shorter side, a thinner image than this would fill the memory.
_THINNEST = 200
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TEXT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf")

_reading = threading.local()


@runtime_checkable
class Picture(Protocol):
    """One image of a source. `str` of it says where it lies, for messages."""

    @property
    def name(self) -> str:
        """Its name below the source, which says nothing of where the source lies."""
        ...

    def open(self) -> BinaryIO:
        """Its bytes, which decide what it shows: the same bytes are the same image."""
        ...

    @property
    def holder(self) -> tuple[Path, Path] | None:
        """The source's folder and the file that holds these bytes; None: they are in no file."""
        ...

    @property
    def place(self) -> tuple[int, int] | None:
        """The first of these bytes in the file and how many they are; None: all of it."""
        ...

    def decode(self) -> Image.Image:
        """The image in RGB, as a viewer shows it.

        Raises:
            Exception: Of any kind, where it cannot be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class File:
    """An image file.

    Attributes:
        root: The folder of the source, or of a domain.
        below: Its path below that, with slashes.
        domain: The domain that the folder is of; empty where the path says it.
    """

    root: Path
    below: str
    domain: str = ""

    @property
    def name(self) -> str:
        """Its path in the source, with slashes."""
        return f"{self.domain}/{self.below}" if self.domain else self.below

    @property
    def path(self) -> Path:
        """The file."""
        return self.root / self.below

    def open(self) -> BinaryIO:
        """Its bytes."""
        return self.path.open("rb")

    @property
    def holder(self) -> tuple[Path, Path]:
        """The source's folder and the file."""
        return self.root, self.path

    @property
    def place(self) -> None:
        """All of the file."""
        return None

    def decode(self) -> Image.Image:
        """The image in RGB."""
        with self.open() as file:
            return decode(file)

    def __str__(self) -> str:
        return str(self.path)


def decode(file: BinaryIO) -> Image.Image:
    """Read an image file as a viewer shows it.

    The first frame of an animation, turned as its EXIF tag says, transparent parts on white, 16-bit
    grey scaled to 8. What is wrong with a file's texts and tags does not matter.

    Args:
        file: The file, at its beginning.

    Returns:
        The image in RGB.

    Raises:
        ValueError: If it has too many bytes or pixels, is too thin, or holds numbers that are no
            colours.
        Exception: Of any kind: decoders raise anything at all on a damaged file.
    """
    data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"too many bytes for a picture, {_MOST_BYTES} allowed")
    try:
        return _decoded(data)
    except Exception:
        plain = _without_text(data)
        if plain is None:
            raise
        return _decoded(plain)


def reason(error: Exception) -> str:
    """What is wrong, without the path or the address in memory that Pillow and Python add."""
    if isinstance(error, UnidentifiedImageError):
        return "cannot identify image file"
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()) or type(error).__name__


@contextmanager
def naming(picture: Picture) -> Iterator[None]:
    """Let `being_read` say which picture this thread decodes."""
    _reading.name = picture.name
    try:
        yield
    finally:
        _reading.name = None


def being_read() -> str | None:
    """The picture that this thread decodes, so that a decoder's warning can name it."""
    return getattr(_reading, "name", None)


def _decoded(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(
                f"{image.width} x {image.height} pixels are too many for a picture, "
                f"{MOST_PIXELS} allowed"
            )
        if max(image.size) > _THINNEST * min(image.size):
            raise ValueError(f"{image.width} x {image.height} pixels are too thin for a picture")
        kind = image.format
        image.load()
        return _rgb(_upright(image), kind)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # of broken tags, which a viewer passes over
        return image


def _rgb(image: Image.Image, kind: str | None) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip 16 bits at 255, which leaves a white image.
        grey = np.asarray(image)
        if image.mode == "I" and kind not in ("PNG", "PPM"):
            raise ValueError("32-bit numbers have no agreed colours")
        image = Image.fromarray((grey // 257).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point numbers have no agreed colours")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _without_text(data: bytes) -> bytes | None:
    """A PNG without the chunks that do not say what it shows; None where there are none."""
    if not data.startswith(_PNG):
        return None
    kept, place = [_PNG], len(_PNG)
    while place + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if name not in _PNG_TEXT:
            kept.append(data[place:end])
        place = end
    plain = b"".join(kept)
    return plain if len(plain) < len(data) else None
