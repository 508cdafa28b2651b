"""Visual prototypes: which rows stand for which cell, and what the model makes of images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import nullspace_unlearn as nsu
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data import mini
from nullspace_unlearn.data.folders import read_folder
from nullspace_unlearn.data.source import Source
from nullspace_unlearn.features import Features
from nullspace_unlearn.features.embed import embed
from nullspace_unlearn.linalg import unit
from nullspace_unlearn.prototypes import (
    Synthesis,
    Visual,
    from_batches,
    from_images,
    from_pictures,
    synthesise,
)

CLASSES, DOMAINS = ("car", "dog", "house"), ("photo", "sketch")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def made_up(n: int = 40, seed: int = 0) -> Visual:
    """Rows of random cells, at least one of each; the first number of each says which row it is."""
    random = torch.Generator().manual_seed(seed)
    cells = torch.cat([torch.arange(6), torch.randint(6, (n - 6,), generator=random)])
    features = Features(
        embeddings=torch.cat([torch.arange(1.0, n + 1)[:, None], randn(n, 4)], -1),
        labels=cells // 2,
        class_names=CLASSES,
        hidden=torch.cat([torch.arange(1.0, n + 1)[:, None], randn(n, 6)], -1),
        domains=cells % 2,
        domain_names=DOMAINS,
        text=randn(3, 5),
        provenance={"images": "made up"},
    )
    mlp = torch.cat([torch.arange(1.0, n + 1)[:, None], randn(n, 8)], -1)
    return Visual(features, "images", mlp)


def cell_of(visual: Visual) -> dict[int, tuple[str, str]]:
    """What each row, by its number, is said to stand for."""
    f = visual.features
    assert f.domains is not None and f.hidden is not None and visual.mlp is not None
    assert torch.equal(f.embeddings[:, 0], f.hidden[:, 0])
    assert torch.equal(f.embeddings[:, 0], visual.mlp[:, 0])
    columns = (f.embeddings[:, 0].int().tolist(), f.labels.tolist(), f.domains.tolist())
    return {row: (f.class_names[c], f.domain_names[d]) for row, c, d in zip(*columns, strict=True)}


@pytest.mark.parametrize(
    "classes, domains",
    [
        (CLASSES, DOMAINS),
        (("house", "car"), DOMAINS),
        (("dog", "house", "car"), ("sketch",)),
        (("house",), ("sketch", "photo")),
    ],
)
def test_other_lists_of_names_relabel_the_rows_and_leave_out_the_rest(classes, domains) -> None:
    visual = made_up()
    on = visual.on(classes, domains)
    assert (on.features.class_names, on.features.domain_names) == (classes, domains)
    expected = {r: (c, d) for r, (c, d) in cell_of(visual).items() if c in classes and d in domains}
    assert cell_of(on) == expected and len(expected) >= len(classes) * len(domains)
    assert on.made_of == visual.made_of
    assert dict(on.features.provenance) == {"images": "made up"} and on.features.text is None
    bare = replace(visual, mlp=None, features=replace(visual.features, hidden=None))
    again = bare.on(classes, domains)
    assert again.mlp is None and again.features.hidden is None
    assert torch.equal(again.features.embeddings, on.features.embeddings)


def test_cells_without_a_row_are_named() -> None:
    visual = made_up()
    message = "no image of 2 cells that the request needs: cat/photo, cat/sketch$"
    with pytest.raises(ValueError, match=message):
        visual.on(("car", "cat"), DOMAINS)
    with pytest.raises(ValueError, match="7 cells .* car/map, cat/map, .*cow/map and 2 more$"):
        visual.on(("car", "cat", "ant", "bee", "cow", "elk", "fox"), ("map",))
    f = visual.features
    some = (f.labels != 1) | (f.domains != 1)
    holed = Visual(
        replace(f, embeddings=f.embeddings[some], hidden=None, labels=f.labels[some],
                domains=f.domains[some]),
        "images",
    )  # fmt: skip
    with pytest.raises(ValueError, match="no image of 1 cells that the request needs: dog/sketch$"):
        holed.on(CLASSES, DOMAINS)
    assert len(holed.on(("car", "house"), DOMAINS).features)  # the control: it is not asked for
    with pytest.raises(ValueError, match="the prototypes name no domains"):
        Visual(replace(f, domains=None, domain_names=()), "images").on(CLASSES, DOMAINS)


def test_a_cell_is_the_unit_mean_of_its_unit_rows() -> None:
    visual = made_up()
    f = visual.features
    means = visual.seen(f.class_names).cell_means()[0].reshape(3, 2, -1)
    assert means.shape == (3, 2, 5) and means.dtype == torch.float64
    cells = cell_of(visual)
    for c, class_ in enumerate(CLASSES):
        for d, domain in enumerate(DOMAINS):
            rows = [r - 1 for r, cell in cells.items() if cell == (class_, domain)]
            total = sum(f.embeddings[r].double() / f.embeddings[r].double().norm() for r in rows)
            torch.testing.assert_close(means[c, d], total / total.norm())
            plain = f.embeddings[rows].double().mean(0)  # the control: lengths must not weigh
            if len(rows) > 1:
                assert not torch.allclose(means[c, d], plain / plain.norm(), atol=1e-3)


# Of real images.


@pytest.fixture(scope="module")
def clip() -> Clip:
    return nsu.load("nsu-mini", device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Source:
    root = tmp_path_factory.mktemp("pictures")
    mini.write_images(root, CLASSES, DOMAINS, range(7_000_000, 7_000_004))
    return read_folder(root)


def opened(clip: Clip, root: Path, files: list[str]) -> Tensor:
    return torch.stack([clip.preprocess(Image.open(root / file).convert("RGB")) for file in files])


def test_real_images_are_what_the_model_makes_of_the_files(clip: Clip, folder: Source) -> None:
    visual = from_images(clip, folder, shots=2, seed=3, quiet=True, batch_size=5)
    f = visual.features
    assert visual.made_of == "images" and visual.mlp is None
    files = f.provenance["files"]
    drawn = folder.few(2, 3)
    assert files == [picture.name for picture in drawn.pictures]
    assert len(files) == len(f) == 12
    for file, label, domain in zip(files, f.labels.tolist(), f.domains.tolist(), strict=True):
        assert file.startswith(f"{f.domain_names[domain]}/{f.class_names[label]}/")
    hidden, embeddings = clip.encode_both(opened(clip, folder.pictures[0].holder[0], files))
    torch.testing.assert_close(f.embeddings, embeddings, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(f.hidden, hidden, rtol=1e-4, atol=1e-5)
    assert torch.equal(
        f.embeddings, embed(clip, drawn, batch_size=5, quiet=True, hidden=True).embeddings
    )
    other = from_images(clip, folder, shots=2, seed=4, quiet=True)  # the control
    assert other.features.provenance["files"] != files
    assert not torch.allclose(other.features.embeddings, embeddings, atol=1e-2)


def test_reading_deeper_gives_what_enters_the_last_mlp(clip: Clip, folder: Source) -> None:
    visual = from_images(clip, folder, shots=2, quiet=True, space="mlp", batch_size=5)
    images = opened(clip, folder.pictures[0].holder[0], visual.features.provenance["files"])
    seen = clip.read_inner("mlp", images)
    expected = seen.mlp / seen.deviation[:, None]
    assert visual.mlp is not None and visual.mlp.shape == (12, clip.last_mlp().mlp_width)
    torch.testing.assert_close(visual.mlp, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(visual.mlp, seen.mlp, rtol=1e-2)  # the control
    shallow = from_images(clip, folder, shots=2, quiet=True, batch_size=5)
    assert torch.equal(shallow.features.embeddings, visual.features.embeddings)


def test_images_in_memory_are_read_as_those_in_files(clip: Clip, folder: Source) -> None:
    files = from_images(clip, folder, shots=64, space="mlp", quiet=True)
    images = opened(clip, folder.pictures[0].holder[0], list(files.features.provenance["files"]))
    cells = (files.features.labels, files.features.domains, folder.classes, folder.domains)
    made = from_batches(clip, images.split(3), *cells, space="mlp", source={"images": "mine"})
    assert made.made_of == "images" and made.features.provenance == {"images": "mine"}
    for name in ("embeddings", "hidden"):
        ours, theirs = getattr(made.features, name), getattr(files.features, name)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert made.mlp is not None and files.mlp is not None
    torch.testing.assert_close(made.mlp, files.mlp, rtol=1e-4, atol=1e-5)
    assert from_batches(clip, [images], *cells).mlp is None
    backwards = from_batches(clip, [images.flip(0)], *cells)
    assert not torch.allclose(backwards.features.embeddings, files.features.embeddings, atol=1e-2)


def test_a_file_that_is_no_image_is_left_out_of_everything(clip: Clip, tmp_path: Path) -> None:
    mini.write_images(tmp_path, CLASSES[:2], DOMAINS, range(2))
    whole = from_images(clip, read_folder(tmp_path), quiet=True, space="mlp")
    (tmp_path / "photo/dog/0.png").write_bytes(b"")
    visual = from_images(clip, read_folder(tmp_path), quiet=True, space="mlp")
    assert len(visual.features) == 7 and len(visual.mlp) == 7
    left = [
        i for i, file in enumerate(whole.features.provenance["files"]) if "photo/dog/0" not in file
    ]
    torch.testing.assert_close(visual.mlp, whole.mlp[left], rtol=1e-4, atol=1e-5)
    assert torch.equal(visual.features.labels, whole.features.labels[left])
    (skipped,) = visual.features.provenance["skipped"]
    assert skipped["file"] == "photo/dog/0.png"


@pytest.mark.parametrize("shots", [0, -1, 65])
def test_shots_out_of_range(clip: Clip, folder: Source, shots: int) -> None:
    with pytest.raises(ValueError, match=f"shots must be from 1 to 64, got {shots}"):
        from_images(clip, folder, shots=shots)
    assert len(from_images(clip, folder, shots=64, quiet=True).features) == len(folder)


def test_a_cell_with_no_readable_image_is_an_error(clip: Clip, tmp_path: Path) -> None:
    mini.write_images(tmp_path, CLASSES[:2], DOMAINS, [0])
    (tmp_path / "sketch/car/0.png").write_bytes(b"")
    with pytest.raises(ValueError, match="no readable image is left of class 'car' in domain 'ske"):
        from_images(clip, read_folder(tmp_path), quiet=True)


# Of synthesised pictures.


def test_pictures_are_read_as_the_synthesis_left_them(clip: Clip) -> None:
    templates = ("a {domain} of a {class}.",)
    domains = {name: name for name in DOMAINS}
    made = synthesise(clip, CLASSES[:2], domains, templates, Synthesis(each=1, steps=2), quiet=True)
    plain, mlp = (from_pictures(clip, made, space=space) for space in ("embedding", "mlp"))
    assert plain.features is made.features and plain.mlp is None
    assert plain.made_of == "pictures"  # they cannot be judged by one another
    seen = clip.read_inner("mlp", clip.normalise(made.images / 255))
    torch.testing.assert_close(mlp.mlp, seen.mlp / seen.deviation[:, None])
    torch.testing.assert_close(
        unit(seen.embedding), unit(made.features.embeddings), atol=1e-4, rtol=0
    )
