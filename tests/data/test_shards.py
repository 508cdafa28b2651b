"""webdataset shards: the same images as in a folder, and one line for whatever is wrong."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from nullspace_unlearn.data import shards
from nullspace_unlearn.data.folders import read_folder
from nullspace_unlearn.data.shards import are_shards, read_shards
from nullspace_unlearn.data.source import Source

Files = Iterable[tuple[str, bytes]]


def picture(red: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def sample(key: str, label: int | str = 0, red: int = 0, **more: bytes) -> list[tuple[str, bytes]]:
    files = {"png": picture(red), "cls": str(label).encode(), **more}
    return [(f"{key}.{suffix}", data) for suffix, data in files.items()]


def write(path: Path, files: Files, names: str | None = "cat\ndog\n") -> Path:
    """A shard, and class names beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    if names is not None:
        (path.parent / "classnames.txt").write_text(names)
    return path


def reds(found: Source) -> list[int]:
    """The colour of each picture, by which the tests know it."""
    batches = found.batches(lambda image: torch.tensor(image.getpixel((0, 0)))[:, None, None])
    images = [image for batch in batches for image in batch.images]
    return [int(image[0, 0, 0]) for image in images]


def test_the_same_images_as_in_a_folder(tmp_path: Path) -> None:
    red = 0
    for domain in ("photo", "sketch"):
        files: list[tuple[str, bytes]] = []
        for label, name in enumerate(("cat", "dog")):
            for i in range(3):
                red += 1
                file = tmp_path / "folder" / domain / name / f"{i}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(picture(red))
                files += sample(f"{name}{i}", label, red)
        write(tmp_path / "shards" / domain / "0.tar", files, None)
    (tmp_path / "shards/classnames.txt").write_text("cat\ndog\n")
    folder, found = read_folder(tmp_path / "folder"), read_shards(tmp_path / "shards")
    assert (found.classes, found.domains) == (folder.classes, folder.domains)
    assert torch.equal(found.class_index, folder.class_index)
    assert torch.equal(found.domain_index, folder.domain_index)
    assert reds(found) == reds(folder) == list(range(1, 13))
    assert reds(found.few(1)) == reds(folder.few(1))
    names = [picture.name for picture in found.pictures]
    assert names[:2] == ["photo/0.tar:cat0.png", "photo/0.tar:cat1.png"]
    assert len({picture.name for picture in found.pictures}) == 12


def test_numbers_in_names_count_as_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 0):
        write(tmp_path / f"{number}.tar", sample("a", 0, number) + sample("b", 1, 100 + number))
    assert reds(read_shards(tmp_path)) == [0, 100, 9, 109, 10, 110]
    assert reds(read_shards(f"{tmp_path}/{{9..10}}.tar")) == [9, 109, 10, 110]
    assert reds(read_shards(tmp_path / "9.tar")) == [9, 109]
    for number in (1, 2):
        write(tmp_path / f"0{number}.tar", sample("a", 0, 50 + number))
    assert reds(read_shards(f"{tmp_path}/{{01..02}}.tar")) == [51, 52]
    with pytest.raises(ValueError, match="1 of 2 shards .* are not there, the first .*11.tar"):
        read_shards(f"{tmp_path}/{{10..11}}.tar")
    with pytest.raises(ValueError, match="the range {2..1} is empty"):
        read_shards(f"{tmp_path}/{{2..1}}.tar")


def test_where_a_domain_comes_from(tmp_path: Path) -> None:
    files = [
        *sample("plain", 0, 1),
        *sample("text", 0, 2, domain=b" line_art \n"),
        *sample("json", 1, 3, json=json.dumps({"domain": "sketch", "x": [1]}).encode()),
        *sample("other", 1, 4, json=b'{"caption": "a dog"}'),
    ]
    found = read_shards(write(tmp_path / "0.tar", files), {"sketch": "drawing"})
    assert [found.domains[i] for i in found.domain_index] == ["all", "line_art", "sketch", "all"]
    assert found.domain_words == ("picture", "line art", "drawing")
    write(tmp_path / "photo/0.tar", files, None)
    (tmp_path / "0.tar").unlink()
    found = read_shards(tmp_path)
    assert [found.domains[i] for i in found.domain_index] == [
        "photo",
        "line_art",
        "sketch",
        "photo",
    ]


def test_the_layout_of_clip_benchmark(tmp_path: Path) -> None:
    """`classnames.txt` above the split's folder, shards by number, two classes of one name."""
    write(tmp_path / "test/0.tar", sample("s0000000", 2), None)
    (tmp_path / "classnames.txt").write_text("maillot\nfish\nmaillot\n")
    (tmp_path / "test/nshards.txt").write_text("1\n")
    found = read_shards(tmp_path / "test")
    assert found.classes == ("maillot", "fish", "maillot") and found.class_index.tolist() == [2]
    assert found.domains == ("all",)


def test_what_counts_as_shards(tmp_path: Path) -> None:
    (tmp_path / "folder/photo/cat").mkdir(parents=True)
    assert not are_shards(tmp_path / "folder") and not are_shards(tmp_path / "missing")
    write(tmp_path / "a/photo/0.tar", [])
    assert all(map(are_shards, (tmp_path / "a", tmp_path / "a/photo", "b/{0..1}.tar", "x.tar")))


def test_a_damaged_image_is_skipped_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sample("a", 0, 7) + sample("b", 0, 8, png=b"damaged") + sample("c", 1, 9)
    files += [("c.png.txt", b"other files are passed over"), ("d/e.PNG", picture(11))]
    files += [("d/e.cls", b"1")]
    found = read_shards(write(tmp_path / "0.tar", files))
    assert reds(found) == [7, 9, 11]
    (one,) = [s for batch in found.batches(lambda _: torch.zeros(1)) for s in batch.skipped]
    assert (str(one.picture), one.reason) == (
        f"{tmp_path}/0.tar:b.png",
        "cannot identify image file",
    )
    monkeypatch.setattr(shards, "_MOST_BYTES", len(picture(9)) - 1)
    with pytest.raises(ValueError, match=r"0.tar:\w.png: .* bytes are too many for a picture"):
        reds(found)
    monkeypatch.undo()
    data = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(data[:520])  # after it was indexed
    with pytest.raises(ValueError, match="0.tar:a.png: the shard ends in the middle of it"):
        reds(found)


@pytest.mark.parametrize("kind", ["link", "hard link", "folder", "device"])
def test_only_plain_files_are_read(tmp_path: Path, kind: str) -> None:
    (tmp_path / "secret.png").write_bytes(picture(99))
    path = write(tmp_path / "0.tar", sample("a", 0, 1) + [("b.cls", b"1")])
    read_shards(write(tmp_path / "1.tar", sample("a", 0, 1) + sample("b", 1)))  # control
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo("b.png")
        member.type = {
            "link": tarfile.SYMTYPE,
            "hard link": tarfile.LNKTYPE,
            "folder": tarfile.DIRTYPE,
            "device": tarfile.CHRTYPE,
        }[kind]
        member.linkname = str(tmp_path / "secret.png")
        tar.addfile(member)
    with pytest.raises(ValueError, match="sample 'b' has no image"):
        read_shards(path)


class Payload:
    """What must not be unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("unpickled",)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    import pickle

    bomb = pickle.dumps(Payload())
    files = sample("a", 0, 5, pyd=bomb, pickle=bomb, pth=bomb) + sample("b", 1, 6)
    assert reds(read_shards(write(tmp_path / "0.tar", files))) == [5, 6]


GOOD = sample("a", 0) + sample("b", 1)
WRONG: dict[str, tuple[Files, str]] = {
    "no label": (GOOD[:3], "sample 'b' has no label, b.cls"),
    "no image": ([*GOOD, ("c.cls", b"0")], "sample 'c' has no image"),
    "two images": ([*GOOD, ("a.jpg", b"")], "sample 'a' has two images"),
    "label too large": ([*GOOD, *sample("c", 2)], "sample 'c' must be from 0 to 1, got '2'"),
    "label below 0": ([*GOOD, *sample("c", -1)], "must be from 0 to 1, got '-1'"),
    "label in words": ([*GOOD, *sample("c", "cat")], "must be from 0 to 1, got 'cat'"),
    "label of digits": ([*GOOD, *sample("c", "9" * 9999)], "must be from 0 to 1, got '9999"),
    "label in bytes": ([*GOOD, ("c.cls", b"\xff")], "'c.cls' is no text"),
    "label without end": ([*GOOD, ("c.cls", b" " * (1 << 21))], "bytes, 1048576 allowed"),
    "broken JSON": (sample("a", json=b"{") + GOOD[2:], "'a.json' is no JSON"),
    "deep JSON": (sample("a", json=b"[" * 100_000) + GOOD[2:], "'a.json' is no JSON"),
    "domain of numbers": (sample("a", json=b'{"domain": 3}'), "domain of sample 'a' must be"),
    "empty domain": (sample("a", domain=b" "), "domain of sample 'a' must be a name, got ''"),
    "name with controls": ([*GOOD, ("\x1b[31m.png", b"")], "holds a file by the name '\\x1b[31m"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_refused_samples(tmp_path: Path, kind: str) -> None:
    files, message = WRONG[kind]
    read_shards(write(tmp_path / "0.tar", GOOD))
    with pytest.raises(ValueError) as error:
        read_shards(write(tmp_path / "0.tar", files))
    text = str(error.value)
    assert message in text and "0.tar' cannot be used: " in text
    assert "\n" not in text and len(text) < 400


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (None, "have no classnames.txt"),
        ("cat\n", "at least 2, one a line"),
        ("", "at least 2, one a line"),
        ("cat\n\ndog", "none empty"),
    ],
)
def test_refused_class_names(tmp_path: Path, names: str | None, message: str) -> None:
    path = write(tmp_path / "0.tar", GOOD, names)
    with pytest.raises(ValueError, match=message):
        read_shards(path)
    read_shards(write(path, GOOD))  # control


def test_no_samples(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hold no samples"):
        read_shards(write(tmp_path / "0.tar", [("readme.txt", b"")]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no shards; shards are DIR/"):
        read_shards(tmp_path / "empty")


def test_a_shard_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "0.tar", GOOD)
    data = path.read_bytes()
    end = data.rindex(b"1") + 1 + 511  # of the last file, in whole blocks
    end -= end % 512
    taken = 0
    for length in [*range(0, end, 256), end - 1, end, end + 100]:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="0.tar' cannot be used: ") as error:
            read_shards(path)
        assert "\n" not in str(error.value)
        try:  # control: the library takes many of them for whole
            with tarfile.open(path) as tar:
                taken += bool(tar.getmembers())
        except tarfile.TarError:
            continue
    assert taken > 5
    path.write_bytes(data[: end + 1024])
    assert len(read_shards(path)) == 2


def test_a_damaged_header_is_not_the_end(tmp_path: Path) -> None:
    path = write(tmp_path / "0.tar", GOOD)
    data = bytearray(path.read_bytes())
    data[data.index(b"b.png")] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="cut short or damaged after"):
        read_shards(path)
    with tarfile.open(path) as tar:  # control
        assert tar.getnames() == ["a.png", "a.cls"]
    path.write_bytes(b"<html>404</html>" * 99)
    with pytest.raises(ValueError, match="cannot be used"):
        read_shards(path)


def test_a_fingerprint_tells_shards_apart(tmp_path: Path) -> None:
    def found(folder: str, *reds: int) -> Source:
        samples = [sample(f"{i:02}", i % 2, red) for i, red in enumerate(reds)]
        return read_shards(write(tmp_path / folder / "0.tar", sum(samples, [])).parent)

    one, same, other = found("a", 1, 2, 3), found("b", 1, 2, 3), found("c", 1, 9, 3)
    assert one.fingerprint == same.fingerprint
    assert one.fingerprint.differences(other.fingerprint)
    assert (
        one.subset(torch.tensor([0, 1])).fingerprint != one.subset(torch.tensor([0, 2])).fingerprint
    )
