"""`nsu erase` with prototypes that stand for images, and one step deeper."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from shell import nsu

from nullspace_unlearn.data import mini

WEIGHTS = "open_clip_model.safetensors"
DOMAIN = ("erase", "--all-classes", "--domain", "sketch")
CELL = ("erase", "--class", "car", "--domain", "sketch")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Three pictures of every cell, on seeds that nothing is measured on."""
    root = tmp_path_factory.mktemp("images")
    for name in mini.CLASSES:
        for domain in mini.DOMAINS:
            folder = root / domain / name
            folder.mkdir(parents=True)
            for seed in range(7_500_000, 7_500_003):
                mini.render(name, domain, seed).save(folder / f"{seed}.png")
    return root


def after(report: dict) -> dict:
    return report["figures"]["after"]


def changed(folder: Path) -> list[str]:
    new, old = load_file(folder / WEIGHTS), load_file(mini.MODEL_FOLDER / WEIGHTS)
    return [key for key in old if not torch.equal(new[key], old[key].to(new[key].dtype))]


def test_a_whole_domain_looks_at_pictures_unless_told_otherwise():
    pixels = nsu(*DOMAIN, "--output", "pixels", "--json").json
    assert pixels["prototypes"]["images"].startswith("synthesised")
    assert after(pixels)["forgotten"] < 0.25 and after(pixels)["kept"] > 0.75
    text = nsu(*DOMAIN, "--prototypes", "text", "--output", "text", "--json").json
    assert text["prototypes"] == "prompts"
    closed = nsu(*DOMAIN, "--prototypes", "closed", "--output", "closed", "--json").json
    assert closed["prototypes"]["images"].startswith("closed form")
    cell = nsu(*CELL, "--output", "cell", "--json").json
    assert cell["prototypes"] == pixels["prototypes"]
    assert (text["method"], pixels["method"], cell["method"]) == ("gated", "neutral", "neutral")
    for report in (pixels, text, closed):
        assert report["figures"]["before"]["forgotten"] > 0.9  # control: the untouched model


def test_inspect_shows_the_edit_that_erase_makes_of_cells(images):
    given = ("--images", images, "--shots", "2")
    said = nsu("inspect", *CELL[1:], *given, "--json").json
    made = nsu(*CELL, *given, "--output", "out", "--json").json
    assert (said["method"], said["space"]) == ("neutral", "mlp")
    assert said["numbers"] == made["numbers"] and [said["parameter"]] == made["parameter"]
    assert said["shape"] == [512, 128]
    assert said["change_of_forgotten"] > 3 * said["mean_change_of_kept"] > 0
    changes = [one["change"] for one in said["most_changed"]]
    assert changes == sorted(changes, reverse=True)
    assert "car/sketch" not in [one["name"] for one in said["most_changed"]]
    text = nsu("inspect", *CELL[1:], *given).out
    assert "neutral on visual.transformer" in text and "|z' - z|/|z|: forgotten" in text


def test_real_images_are_read_and_named(images):
    report = nsu(*DOMAIN, "--images", images, "--shots", "2", "--output", "out", "--json").json
    assert after(report)["forgotten"] < 0.25 and after(report)["kept"] > 0.75
    assert len(report["prototypes"]["files"]) == 2 * len(mini.CLASSES) * len(mini.DOMAINS)
    recipe = yaml.safe_load(Path("out/recipe.yaml").read_text())
    assert recipe["edits"][0]["prototypes"] == report["prototypes"]
    assert json.loads(Path("out/report.json").read_text())["figures"] == report["figures"]


def test_pictures_stand_beside_real_images_where_asked_for(images):
    given = ("--images", images, "--shots", "2", "--prototypes", "pixels")
    report = nsu(*DOMAIN, *given, "--output", "out", "--json").json
    assert after(report)["forgotten"] < 0.25 and after(report)["kept"] > 0.75
    assert len(report["prototypes"]["files"]) == 2 * len(mini.CLASSES) * len(mini.DOMAINS)
    assert report["prototypes"]["beside"]["images"].startswith("synthesised")
    # Control: a method that would leave them out refuses.
    gated = nsu(*DOMAIN, *given, "--method", "gated", "--output", "gated")
    assert "method 'gated' reads images or pictures, not both" in gated.err and gated.code == 2


@pytest.mark.slow
def test_each_reading_changes_its_own_tensor_and_is_undone(images):
    for options, tensor, kept in (
        ((), "visual.transformer.resblocks.5.mlp.c_proj.weight", 0.7),
        (("--space", "hidden"), "visual.proj", 0.5),  # less deep, so it costs more
        (("--space", "mlp"), "visual.transformer.resblocks.5.mlp.c_proj.weight", 0.7),
    ):
        report = nsu(
            *DOMAIN, "--images", images, *options, "--undo", "undo", "--output", "out", "--json",
            "--overwrite",
        ).json  # fmt: skip
        assert after(report)["forgotten"] < 0.3 and after(report)["kept"] > kept
        assert changed(Path("out")) == [tensor] == report["parameter"]
        assert nsu("revert", "out", "undo", "--output", "back", "--overwrite").code == 0
        assert Path("back", WEIGHTS).read_bytes() == (mini.MODEL_FOLDER / WEIGHTS).read_bytes()


def test_images_too_keeps_the_certificate():
    report = nsu("erase", "--class", "car", "--images-too", "--output", "out", "--json").json
    assert report["method"] == "two_sided" and report["certificate"]["holds"] is True
    assert nsu("certify", "out", "--no-singly").code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((*CELL, "--images-too"), "--images-too forgets a class everywhere: leave out --domain"),
        (
            ("erase", "--class", "car", "--images-too", "--method", "hull"),
            "--images-too is method two_sided, not hull",
        ),
        ((*CELL, "--images", "none"), "image folder 'none' is not a folder"),
        ((*CELL, "--images", ".", "--prototypes", "text"), "--images say how cells look"),
        (
            (*CELL, "--space", "mlp", "--prototypes", "closed"),
            "--space mlp is what only pictures",
        ),
        (
            (*CELL, "--space", "mlp", "--prototypes", "text"),
            "only images show what the mlp",
        ),
        ((*CELL, "--space", "hidden", "--prototypes", "text"), "only images show what the hidden"),
        (
            ("erase", "--class", "car", "--prototypes", "closed"),
            "method 'hull' takes no visual prototypes; those that do: neutral, gated, two_sided",
        ),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(options, message, tmp_path):
    result = nsu(*options)
    assert result.code == 2 and result.err.count("\n") == 1
    assert result.err.startswith(f"nsu: {message}")
    assert not list(tmp_path.iterdir())


def test_bad_images_are_named(images, tmp_path):
    few = nsu(*CELL, "--images", images, "--shots", "0")
    assert few.code == 2 and few.err == "nsu: shots must be from 1 to 64, got 0\n"
    (tmp_path / "some").symlink_to(images)
    part = tmp_path / "part" / "sketch"
    part.mkdir(parents=True)
    for name in ("car", "dog"):
        (part / name).symlink_to(images / "sketch" / name)
    result = nsu(*CELL, "--images", "part")
    assert result.code == 2
    assert result.err.startswith("nsu: there is no image of 46 cells that the request needs: ")


def test_images_that_show_another_domain_are_said_to(images, tmp_path):
    (tmp_path / "swapped").mkdir()
    other = {"photo": "sketch", "sketch": "photo"}
    for domain in mini.DOMAINS:
        (tmp_path / "swapped" / other.get(domain, domain)).symlink_to(images / domain)
    said = "takes most images of the domain 'sketch' for 'photo' by its prompts"
    given = ("--shots", "2", "--output", "out", "--quiet")
    assert said in nsu(*CELL, "--images", "swapped", *given).err
    control = nsu(*CELL, "--images", images, *given, "--overwrite").err
    assert "takes most images" not in control


def test_a_class_everywhere_makes_do_with_the_images_there_are(images, tmp_path):
    some = tmp_path / "some" / "photo"
    some.mkdir(parents=True)
    for name in ("car", "dog", "tree"):
        (some / name).symlink_to(images / "photo" / name)
    both = ("erase", "--class", "car", "--images-too", "--images", "some", "--output", "out")
    report = nsu(*both, "--json").json
    assert report["certificate"]["holds"] is True
    assert {Path(file).parent.name for file in report["prototypes"]["files"]} == {
        "car", "dog", "tree",
    }  # fmt: skip
    none = nsu("erase", "--class", "bus", *both[3:-1], "other")
    assert none.code == 2
    assert none.err == "nsu: there is no image of 'bus'; there are images of car, dog, tree\n"
