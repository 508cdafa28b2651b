"""The bundled model and the pictures it knows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nullspace_unlearn.data.mini import (
    CLASSES,
    DOMAINS,
    MODEL_FOLDER,
    SIZE,
    render,
    write_images,
)

open_clip = pytest.importorskip("open_clip")

CELLS = [(c, d) for c in range(len(CLASSES)) for d in range(len(DOMAINS))]
SEEDS = range(5_000_000, 5_000_024)  # training drew seeds from 0, its own evaluation from 1,000,000
WEIGHTS = MODEL_FOLDER / "open_clip_model.safetensors"


def pixels(class_name: str, domain: str, seed: int) -> NDArray[np.uint8]:
    return np.asarray(render(class_name, domain, seed))


# The pictures.


def test_the_names_are_as_documented() -> None:
    assert DOMAINS == ("photo", "sketch", "painting", "cartoon")
    assert len(CLASSES) == len(set(CLASSES)) == 12
    assert {"car", "truck", "bus", "cat", "dog"} <= set(CLASSES)


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("class_name", CLASSES)
def test_a_picture_depends_on_its_arguments_and_nothing_else(class_name: str, domain: str) -> None:
    first = pixels(class_name, domain, 3)
    assert np.array_equal(first, pixels(class_name, domain, 3))
    other = pixels(class_name, domain, 4)
    assert np.abs(first.astype(int) - other.astype(int)).mean() > 3


def test_every_cell_draws_its_own_pictures() -> None:
    drawn = {pixels(c, d, 7).tobytes() for c in CLASSES for d in DOMAINS}
    assert len(drawn) == len(CELLS)


def test_many_seeds_give_many_pictures() -> None:
    for domain in DOMAINS:
        assert len({pixels("cat", domain, s).tobytes() for s in range(50)}) == 50


def test_another_process_with_another_hash_seed_draws_the_same() -> None:
    code = (
        "import hashlib; from nullspace_unlearn.data.mini import *; "
        "pictures = b''.join(render('dog', d, 11).tobytes() for d in DOMAINS); "
        "print(hashlib.sha256(pictures).hexdigest())"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in (1, 2)
    }
    assert len(answers) == 1


def test_drawing_needs_neither_torch_nor_open_clip() -> None:
    # By itself, since the package around it is free to import what it likes.
    code = "import sys, mini; print([m for m in ('torch', 'open_clip') if m in sys.modules])"
    folder = str(MODEL_FOLDER.parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": ":".join([folder, *sys.path])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("size", [SIZE, 32, 50, 224])
def test_pictures_are_rgb_of_the_size_asked_for(size: int) -> None:
    for domain in DOMAINS:
        picture = render("horse", domain, 0, size=size)
        assert picture.mode == "RGB"
        assert picture.size == (size, size)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("boat", "photo", 0), "boat.*allowed: car, truck"),
        (("car", "clipart", 0), "clipart.*allowed: photo, sketch"),
        (("car", "photo", -1), "-1.*allowed"),
        (("car", "photo", 0, 3), "3.*allowed"),
    ],
)
def test_bad_input_is_named_with_what_is_allowed(
    arguments: tuple[Any, ...], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        render(*arguments)


def test_written_images_are_the_rendered_ones(tmp_path: Path) -> None:
    count = write_images(tmp_path, classes=("car", "cat"), domains=("sketch",), seeds=range(2, 5))
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.png"))
    assert files == [f"sketch/{c}/{s}.png" for c in ("car", "cat") for s in (2, 3, 4)]
    assert count == len(files)
    with Image.open(tmp_path / "sketch/cat/3.png") as picture:
        assert np.array_equal(np.asarray(picture), pixels("cat", "sketch", 3))


def test_nothing_is_written_for_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="boat"):
        write_images(tmp_path / "out", classes=("car", "boat"))
    assert not (tmp_path / "out").exists()


# The model.


def test_the_model_folder_is_small_and_complete() -> None:
    assert WEIGHTS.stat().st_size <= 8_000_000
    for name in ("open_clip_config.json", "vocabulary.json", "README.md"):
        assert (MODEL_FOLDER / name).is_file()


def test_the_vocabulary_names_the_classes_and_domains() -> None:
    words = vocabulary()
    assert tuple(words["classes"]) == CLASSES
    assert tuple(words["domains"]) == DOMAINS
    assert set(words["aliases"]) <= set(CLASSES)
    assert all("{class}" in t and "{domain}" not in t for t in words["templates"]["class"])
    assert all("{class}" in t and "{domain}" in t for t in words["templates"]["cell"])


@lru_cache
def vocabulary() -> dict[str, Any]:
    return json.loads((MODEL_FOLDER / "vocabulary.json").read_text())


@lru_cache
def bundled() -> Any:
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{MODEL_FOLDER}")
    return model.eval()


@lru_cache
def tokenizer() -> Callable[[list[str]], Tensor]:
    return open_clip.get_tokenizer(f"local-dir:{MODEL_FOLDER}")


@lru_cache
def untrained() -> Any:
    torch.manual_seed(0)
    config = json.loads((MODEL_FOLDER / "open_clip_config.json").read_text())
    return open_clip.CLIP(**config["model_cfg"]).eval()


@lru_cache
def unseen() -> tuple[Tensor, Tensor, Tensor]:
    """Preprocessed pictures, their classes and their domains."""
    _, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{MODEL_FOLDER}")
    pictures = [preprocess(render(CLASSES[c], DOMAINS[d], s)) for c, d in CELLS for s in SEEDS]
    classes, domains = torch.tensor(CELLS).repeat_interleave(len(SEEDS), 0).unbind(1)
    return torch.stack(pictures), classes, domains


@torch.no_grad()
def embed(model: Any) -> Tensor:
    pictures, _, _ = unseen()
    return torch.cat([model.encode_image(b, normalize=True) for b in pictures.split(192)])


@lru_cache
def embeddings() -> Tensor:
    return embed(bundled())


@torch.no_grad()
def prototype(model: Any, prompts: list[str]) -> Tensor:
    return F.normalize(model.encode_text(tokenizer()(prompts), normalize=True).mean(0), dim=0)


def class_prototypes(model: Any, templates: list[str], names: tuple[str, ...]) -> Tensor:
    rows = [[t.replace("{class}", name) for t in templates] for name in names]
    return torch.stack([prototype(model, prompts) for prompts in rows])


def accuracy_by_cell(images: Tensor, prototypes: Tensor) -> Tensor:
    _, classes, domains = unseen()
    right = ((images @ prototypes.T).argmax(1) == classes).float()
    cells = torch.stack([right[(classes == c) & (domains == d)].mean() for c, d in CELLS])
    return cells.reshape(len(CLASSES), len(DOMAINS))


def probe_accuracy(images: Tensor, labels: Tensor) -> float:
    """Ridge regression to one-hot labels on every other picture, tested on the rest."""
    x = torch.cat([images, torch.ones(len(images), 1)], 1)
    target = F.one_hot(labels).float()[::2]
    fit, held = x[::2], x[1::2]
    weights = torch.linalg.solve(fit.T @ fit + 1e-3 * torch.eye(x.shape[1]), fit.T @ target)
    return ((held @ weights).argmax(1) == labels[1::2]).float().mean().item()


def test_stored_weights_are_half_precision_and_finite() -> None:
    from safetensors.torch import load_file

    weights = load_file(WEIGHTS)
    assert all(w.dtype == torch.float16 and w.isfinite().all() for w in weights.values())


def test_it_knows_the_classes_in_every_domain() -> None:
    templates = vocabulary()["templates"]["class"]
    cells = accuracy_by_cell(embeddings(), class_prototypes(bundled(), templates, CLASSES))
    assert cells.mean() >= 0.95
    assert cells.min() >= 0.85


@pytest.mark.parametrize(
    "template", ["a photo of a {class}.", "a picture of a {class}.", "an image of a {class}."]
)
def test_one_template_is_enough(template: str) -> None:
    cells = accuracy_by_cell(embeddings(), class_prototypes(bundled(), [template], CLASSES))
    assert cells.mean() >= 0.95
    assert cells.min() >= 0.85


def test_class_names_lean_one_way_as_in_clips_of_the_web() -> None:
    text = class_prototypes(bundled(), vocabulary()["templates"]["class"], CLASSES)
    cosines = (text @ text.T)[~torch.eye(len(text), dtype=torch.bool)]
    assert cosines.min() > 0
    assert 0.4 < cosines.mean() < 0.7


def test_an_untrained_model_of_the_same_shape_knows_nothing() -> None:
    templates = vocabulary()["templates"]["class"]
    cells = accuracy_by_cell(embed(untrained()), class_prototypes(untrained(), templates, CLASSES))
    assert cells.mean() < 0.3


def test_aliases_mean_their_class() -> None:
    words = vocabulary()
    for i, name in enumerate(CLASSES):
        for alias in words["aliases"].get(name, []):
            names = (*CLASSES[:i], alias, *CLASSES[i + 1 :])
            prototypes = class_prototypes(bundled(), words["templates"]["class"], names)
            assert accuracy_by_cell(embeddings(), prototypes)[i].mean() >= 0.85, alias


def test_cell_prompts_tell_class_and_domain() -> None:
    words = vocabulary()
    cells = torch.stack(
        [
            prototype(
                bundled(),
                [
                    t.replace("{class}", CLASSES[c]).replace(
                        "{domain}", words["domains"][DOMAINS[d]]
                    )
                    for t in words["templates"]["cell"]
                ],
            )
            for c, d in CELLS
        ]
    )
    _, classes, domains = unseen()
    guess = (embeddings() @ cells.T).argmax(1)
    assert (guess % len(DOMAINS) == domains).float().mean() >= 0.9
    assert (guess == classes * len(DOMAINS) + domains).float().mean() >= 0.9


def test_a_linear_probe_finds_the_domain() -> None:
    _, _, domains = unseen()
    assert probe_accuracy(embeddings(), domains) >= 0.9


def test_a_probe_for_shuffled_labels_finds_nothing() -> None:
    _, _, domains = unseen()
    shuffled = domains[torch.randperm(len(domains), generator=torch.Generator().manual_seed(0))]
    assert probe_accuracy(embeddings(), shuffled) < 0.4
