"""The other commands, and what all of them share."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pico
import pytest
import yaml
from safetensors.numpy import load_file, save_file
from shell import nsu, nsu_process, tree

import nullspace_unlearn
from nullspace_unlearn.cli import nsu as group
from nullspace_unlearn.data import mini

WEIGHTS = "open_clip_model.safetensors"
QUICK = "--no-singly"  # where the 80 templates one by one are not what is asked


@pytest.fixture
def copy(made, tmp_path) -> Path:
    """A folder that forgot car everywhere, to be damaged."""
    return Path(shutil.copytree(made("--class", "car"), tmp_path / "copy"))


@pytest.fixture(scope="session")
def siglip(tmp_path_factory) -> Path:
    return pico.write("ViT-B-16-SigLIP", tmp_path_factory.mktemp("siglip") / "model")


@pytest.mark.parametrize("command", [None, *group.commands])
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help(command, option):
    result = nsu(*filter(None, [command, option]))
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("Usage: nsu")
    if command is None:
        assert all(f"  {name} " in result.out for name in group.commands)
    else:
        for parameter in group.commands[command].params:
            assert parameter.name.upper() in result.out or parameter.opts[0] in result.out


def test_without_a_command_it_explains_itself():
    assert nsu().out == nsu("--help").out
    assert nsu("--version").out == f"nsu, version {nullspace_unlearn.__version__}\n"


def test_the_commands_are_those_of_the_specification():
    expected = {"erase", "train", "evaluate", "inspect", "certify", "revert", "models"}
    assert set(group.commands) == expected | {
        *("prototypes", "embed", "sweep", "bench", "recipes", "audit", "report", "doctor"),
        *("apply", "diff", "export", "push"),
    }
    for name in set(group.commands) - {"recipes"}:  # which print a line or two, nothing to silence
        command = group.commands[name]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"--json", "--quiet"} <= options


def test_quiet_is_silent(made, tmp_path, photos):
    request = ("--class", "car")
    for command in (
        ("erase", *request, "--output", "out", "--undo", "secret"),
        ("evaluate", "out", "--data", photos),
        ("inspect", *request),
        ("certify", "out", QUICK),
        ("revert", "out", "secret", "--output", "back"),
        ("models",),
        ("models", "--model", "nsu-mini"),
    ):
        loud = nsu(*command)
        assert loud.code == 0 and loud.out, command
        overwrite = ["--overwrite"] if command[0] in ("erase", "revert") else []
        silent = nsu(*command, *overwrite, "--quiet")
        assert (silent.code, silent.out, silent.err) == (0, "", ""), command


def test_evaluate_counts_what_is_there(photos):
    said = nsu("evaluate", "nsu-mini", "--data", photos, "--json").json
    assert said["classes"] == ["car", "dog", "tree", "truck"]
    assert said["domains"] == ["painting", "photo", "sketch"]
    assert said["count"] == [[2] * 3] * 4
    right = sum(sum(row) for row in said["accuracy"])
    assert said["metrics"]["acc1"] == pytest.approx(right / 12) and right > 11
    assert said["dataset"] == str(photos) and said["model"] == "nsu-mini"
    text = nsu("evaluate", "nsu-mini", "--data", photos).out.splitlines()
    assert text[0].split() == said["domains"] and text[1].split()[0] == "car"


def test_evaluate_among_more_classes(photos, tmp_path):
    names = "car,dog,tree,truck,lorry,pickup"
    said = nsu("evaluate", "nsu-mini", "--data", photos, "--classes", names, "--json").json
    assert said["classes"] == names.split(",")
    assert said["count"][4] == [0, 0, 0] and said["accuracy"][4] == [None] * 3
    assert "acc5" in said["metrics"]


def test_evaluate_the_bundled_pictures_by_seed():
    first, same, other = (
        nsu("evaluate", "nsu-mini", "--seed", seed, "--json").json for seed in (0, 0, 1)
    )
    assert first == same and first["classes"] == list(mini.CLASSES)
    assert other["accuracy"] != first["accuracy"]


def test_evaluate_uses_the_templates_it_is_given(photos):
    plain = nsu("evaluate", "nsu-mini", "--data", photos, "--json").json
    odd = nsu("evaluate", "nsu-mini", "--data", photos, "--template", "no {}!", "--json").json
    assert odd["templates"] == ["no {class}!"] != plain["templates"]


@pytest.fixture
def features(tmp_path) -> Path:
    """Features of nsu-mini's dimension that are one-hot classes, and their text."""
    random = np.random.default_rng(0)
    text = random.normal(size=(3, 64)).astype(np.float32)
    labels = np.array([0, 1, 2, 2])
    path = tmp_path / "features.npz"
    np.savez(path, image_features=text[labels], labels=labels, text_features=text)
    return path


def test_a_feature_file_brings_its_own_text(features):
    said = nsu("evaluate", "nsu-mini", "--data", features, "--json").json
    assert said["accuracy"] == [[1.0]] * 3 and said["count"] == [[1], [1], [2]]
    assert (said["classes"], said["domains"]) == (["0", "1", "2"], ["all"])
    named = nsu("evaluate", "nsu-mini", "--data", features, "--classes", "0,1,2", "--json").json
    assert named["accuracy"] != said["accuracy"]  # control: now the model's own text


def test_a_feature_file_without_names_takes_them_from_the_class_list(tmp_path):
    random = np.random.default_rng(0)
    rows = random.normal(size=(4, 64)).astype(np.float32)
    np.savez(tmp_path / "bare.npz", image_features=rows, labels=np.array([0, 1, 2, 2]))
    command = ("evaluate", "nsu-mini", "--data", tmp_path / "bare.npz", "--json")
    said = nsu(*command, "--classes", "car,truck,bus").json
    assert said["classes"] == ["car", "truck", "bus"] and said["count"] == [[1], [1], [2]]
    few = nsu(*command, "--classes", "car,truck")
    assert few.code == 2 and "label 2" in few.err and not few.out
    none = nsu(*command)
    assert none.code == 2 and "give --classes" in none.err


def test_inspect_says_what_would_happen_and_writes_nothing(tmp_path, made):
    said = nsu("inspect", "--class", "car", "--json").json
    assert not list(tmp_path.iterdir())
    assert (said["method"], said["parameter"], said["shape"]) == ("hull", "visual.proj", [128, 64])
    near = said["nearest"]
    assert near[0]["name"] == "truck"  # its look-alike
    assert [n["cosine"] for n in near] == sorted((n["cosine"] for n in near), reverse=True)
    assert len(said["spectrum"]) == 3  # its names; the edit holds other words for them down too
    rank = 3 + said["in_other_words"]["directions"]
    assert said["numbers"]["rank"] == rank == len(said["operator_singular_values"]) > 3
    plain = nsu("inspect", "--class", "car", "--no-wordings", "--json").json
    assert plain["numbers"]["rank"] == 3 and "in_other_words" not in plain
    assert said["change_of_forgotten"] > 2 * said["mean_change_of_kept"] > 0
    recipe = yaml.safe_load((made("--class", "car") / "recipe.yaml").read_text())["edits"][0]
    assert recipe.pop("parameter") == ["visual.proj"] and recipe.pop("invertible") is False
    assert recipe.pop("noise")  # of the fold, not of the edit
    assert {key: said[key] for key in recipe} == recipe  # it is what erase does
    assert len(nsu("inspect", "--class", "car", "--top", "3", "--json").json["nearest"]) == 3
    text = nsu("inspect", "--class", "car").out
    assert "hull on visual.proj [128 -> 64], visual side" in text and "truck" in text


def test_inspect_takes_every_request():
    text = ("--prototypes", "text", "--json")
    cell = nsu("inspect", "--class", "car", "--domain", "sketch", *text).json
    assert cell["method"] == "gated" and cell["numbers"]["rank"] == 1
    domain = nsu("inspect", "--all-classes", "--domain", "sketch", *text).json
    assert domain["nearest"] == [] and domain["numbers"]["rank"] == 2
    text = nsu("inspect", "--class", "car", "--side", "text", "--json").json
    assert text["parameter"] == "text_projection"


def test_certify_an_intact_folder(made):
    folder = made("--class", "car", "--class", "dog", "--alias", "car=cab")
    result = nsu("certify", folder, "--json")
    said = result.json
    assert (result.code, result.err) == (0, "") and said["holds"] is True
    names = ["car", "dog", "cab", "automobile", "sedan", "puppy", "hound"]
    assert [row["class"] for row in said["certificates"]] == names
    for row in said["certificates"]:
        assert row["holds"] and row["violation"] <= said["largest_violation"] < 1e-5
        assert sum(row["weights"].values()) == pytest.approx(1)
        assert not set(row["weights"]) & set(names)
    text = nsu("certify", folder).out.splitlines()
    assert len(text) == 11 and all(": holds, violation" in line for line in text[:7])
    assert text[7] == "That is: on every image it scores the mean of the names that stay."
    assert text[8] == "Assumed: 10 names stay, as the folder's recipe says."
    assert "in the list of these 10 names" in text[9] and "nothing of lists that lack" in text[9]
    assert re.match(r"Templates singly: it holds for \d+ of 80; the worst: '.*{class}", text[10])
    assert len(said["singly"]) == 80 and not all(row["holds"] for row in said["singly"])
    quick = nsu("certify", folder, QUICK, "--json").json
    assert quick["singly"] is None and quick["holds"]
    said = nsu("certify", folder, "--no-singly").out
    assert "Templates singly: not tried; --singly tries them." in said


def tamper(folder: Path, change) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["visual.proj"] = change(weights["visual.proj"])
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.astype(np.float16).astype(np.float32),
        lambda w: w + np.float32(1e-4) * np.random.default_rng(0).normal(size=w.shape).astype("f4"),
        lambda w: load_file(mini.MODEL_FOLDER / WEIGHTS)["visual.proj"],
    ],
    ids=["half precision", "noise", "the original"],
)
def test_certify_tampered_weights(change, copy):
    tamper(copy, lambda w: w)
    assert nsu("certify", copy, QUICK).code == 0  # control
    tamper(copy, change)
    result = nsu("certify", copy, QUICK, "--json")
    assert result.code == 1 and result.json["holds"] is False
    assert len(result.err.splitlines()) == 1
    assert result.err.startswith("nsu: the certificate fails for '")
    assert "FAILS, violation" in nsu("certify", copy, QUICK).out


def test_certify_holds_for_its_templates_and_strength_alone(made):
    assert nsu("certify", made("--class", "car"), QUICK, "--template", "wow, a {}!").code == 1
    assert nsu("certify", made("--class", "car", "--template", "wow, a {}!"), QUICK).code == 0
    assert nsu("certify", made("--class", "car", "--strength", "0.5"), QUICK).code == 1


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (None, "holds no recipe.yaml"),
        ("edits: []", "holds no recipe.yaml of nsu erase"),
        ("edits: [{request: {classes: [car]}}]", "nothing is kept"),
        ("edits: [", "is malformed"),
    ],
)
def test_certify_trusts_no_recipe(recipe, message, copy):
    (copy / "recipe.yaml").unlink() if recipe is None else (copy / "recipe.yaml").write_text(recipe)
    result = nsu("certify", copy, "--json")
    assert (result.code, result.out) == (2, "")
    assert message in result.err and len(result.err.splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"request": {"classes": [1], "domains": [], "keep": [], "aliases": {}}},
        {"request": {"classes": ["car"], "domains": [], "keep": [], "aliases": {"car": 5}}},
        {"request": {"classes": ["car"], "other": 1}},
        {"request": 5},
        {"kept": None},
        {"kept": [["a"]]},
        {"templates": {"class": "a photo"}},
    ],
    ids=str,
)
def test_certify_checks_every_field_it_reads(change, copy):
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text())
    recipe["edits"][-1] |= change
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    result = nsu("certify", copy)
    assert result.code == 2, result
    assert "recipe.yaml is malformed" in result.err or "nothing is kept" in result.err


@pytest.mark.parametrize("twin", ["car", "CAR", " car"])
def test_certify_is_not_fooled_by_what_the_recipe_keeps(twin, copy):
    """A forgotten name among the kept, or one that is the same to the model, proves nothing."""
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text())
    recipe["edits"][-1]["kept"].append(twin)
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    text = nsu("certify", copy, QUICK).out
    assert f"Left out, as forgotten or the same to it: {twin}." in text
    assert ": holds" in text  # control: what it did forget is proven without it
    tamper(copy, lambda w: load_file(mini.MODEL_FOLDER / WEIGHTS)["visual.proj"])
    assert nsu("certify", copy, QUICK).code == 1
    only = nsu("certify", copy, "--classes", twin)
    assert only.code == 2 and "nothing is kept" in only.err


def test_a_cell_has_no_certificate(made):
    result = nsu("certify", made("--class", "car", "--domain", "sketch"))
    assert (result.code, result.out) == (2, "")
    assert "forgets in some domains only" in result.err


@pytest.mark.parametrize("damage", ["weights", "undo", "other undo", "no undo"])
def test_revert_refuses_what_does_not_belong_together(damage, tmp_path):
    for name in ("car", "dog"):
        done = nsu("erase", "--class", name, "--output", name, "--undo", f"{name}.undo", "--quiet")
        assert done.code == 0
    undo = "dog.undo" if damage == "other undo" else "car.undo"
    if damage == "weights":
        tamper(tmp_path / "car", lambda w: w + 1)
    elif damage == "undo":
        data = (tmp_path / undo).read_bytes()
        (tmp_path / undo).write_bytes(data[:-100])
    elif damage == "no undo":
        (tmp_path / undo).unlink()
    before = tree(tmp_path)
    result = nsu("revert", "car", undo, "--output", "back", "--json")
    assert (result.code, result.out) == (2, ""), result
    assert result.err.startswith("nsu: ") and len(result.err.splitlines()) == 1
    assert tree(tmp_path) == before


def test_models_lists_families_and_looks_at_one(siglip):
    families = nsu("models", "--json").json["families"]
    assert {"name", "visual", "text", "examples", "pooled"} == set(families[0])
    text = nsu("models").out
    assert all(family["name"] in text for family in families)
    sides = nsu("models", "--model", "nsu-mini", "--json").json["sides"]
    assert sides["visual"]["key"] == "visual.proj" and sides["text"]["key"] == "text_projection"
    text = nsu("models", "--model", "nsu-mini").out
    assert "visual: can be edited: visual.proj [128 -> 64]" in text
    assert "the edit adds visual.head.proj" in nsu("models", "--model", siglip).out


def test_another_family_without_pictures(siglip, tmp_path):
    names = ",".join(["cat", "dog", "car", "tree", "house", "fish"])
    request = ("--model", siglip, "--class", "cat", "--classes", names)
    said = nsu("erase", *request, "--output", "out", "--json").json
    assert said["parameter"] == ["visual.head.proj.weight"]
    assert said["certificate"]["holds"] and "figures" not in said
    assert nsu("certify", "out", QUICK).code == 0
    original = nsu("models", "--model", siglip, "--json").json["sides"]["visual"]["stored"]
    saved = nsu("models", "--model", "out", "--json").json["sides"]["visual"]["stored"]
    assert (original, saved) == (False, True)
    report = nsu("erase", *request, "--output", "again").out.splitlines()
    assert report[0].startswith("Forgot cat everywhere with hull")


@pytest.mark.slow
def test_output_that_cannot_be_written(monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # what waits is tried again at the end
    code = """
import os, sys
assert "open_clip" not in sys.modules  # it takes seconds, which a mistyped option need not wait
os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
main(["models"])"""
    full = nsu_process(code=code)
    assert (full.code, full.err) == (2, "nsu: No space left on device\n")
    code = """
import os
read, write = os.pipe()
os.close(read)
os.dup2(write, 1)
main(["models"])"""
    gone = nsu_process(code=code)  # whoever read it has gone, and there is nobody to tell
    assert (gone.code, gone.err) == (1, "")


def test_evaluate_marks_what_a_folder_has_forgotten(made):
    folder = made("--class", "car", "--domain", "sketch")
    shown = nsu("evaluate", folder, "--data", "nsu-mini").out
    (row,) = [line for line in shown.splitlines() if "*" in line and line.startswith("car")]
    assert row.count("*") == 1
    assert re.search(r"\nnamed\(2\) +[\d.]+ +[\d.]+\n", shown) and "\nfound " in shown
    said = nsu("evaluate", folder, "--data", "nsu-mini", "--json").json
    after, chance = said["figures"]["after"], said["figures"]["chance"]
    assert after["left"] is None and after["found"] is not None and after["named_all"] <= 1
    assert 0 < chance["found"] < 1
    control = nsu("evaluate", "nsu-mini", "--data", "nsu-mini", "--json").json
    assert "figures" not in control and "forgotten" not in control
    asked = nsu("evaluate", folder, "--data", "nsu-mini", "--phrasing")
    assert asked.out.splitlines()[-4] == "named(all) by single templates, those that tell most"
    own = ("--template", "a {class}.", "--template", "{class}")
    mine = nsu("evaluate", folder, "--data", "nsu-mini", "--phrasing", *own, "--json").json
    assert {one["template"] for one in mine["phrasing"]} == set(own[1::2])
    for option in (["--phrasing"], ["--against", "nsu-mini"]):
        refused = nsu("evaluate", "nsu-mini", "--data", "nsu-mini", *option)
        assert refused.code == 2 and "has not" in refused.err


def test_evaluate_against_the_original_says_what_erase_does(tmp_path):
    one = ("--class", "car", "--domain", "sketch", "--method", "gated", "--space", "embedding")
    text = ("--prototypes", "text", "--output", "out", "--json")
    first = nsu("erase", *one, *text).json
    asked = ("evaluate", "out", "--data", "nsu-mini", "--against", "nsu-mini")
    found = nsu(*asked, "--json").json
    for which in ("before", "after", "chance"):
        assert found["figures"][which] == pytest.approx(first["figures"][which], abs=1e-4)
    assert found["sentence"] == first["sentence"] and found["verdict"] == first["verdict"]
    shown = nsu(*asked).out
    assert first["sentence"] in shown and re.search(r"\nleft \(low is good\) +1.000 +", shown)
    assert found["figures"]["before"] != found["figures"]["after"]  # the control
