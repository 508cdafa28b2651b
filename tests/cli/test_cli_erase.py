"""`nsu erase`: what it prints, what it writes, for every kind of request."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from safetensors.numpy import load_file
from shell import nsu, nsu_process, tree

from nullspace_unlearn.audit import lexicon
from nullspace_unlearn.data import mini
from nullspace_unlearn.erasers import METHODS

WEIGHTS = "open_clip_model.safetensors"
REQUESTS = {
    "global": ("--class", "car"),
    "cell": ("--class", "car", "--domain", "sketch"),
    "domain": ("--all-classes", "--domain", "sketch"),
}


def changed(folder: Path) -> list[str]:
    before, after = (load_file(f / WEIGHTS) for f in (mini.MODEL_FOLDER, folder))
    assert before.keys() == after.keys()
    return [key for key in before if not np.array_equal(before[key], after[key])]


def test_a_class_everywhere(tmp_path):
    result = nsu("erase", "--class", "car", "--json")
    assert (result.code, result.err) == (0, "")
    said = result.json
    assert said["method"] == "hull"
    assert said["output"] == "nsu-mini-without-car"
    assert said["certificate"]["holds"] is True
    assert said["request"]["aliases"] == {"car": ["automobile", "sedan"]}  # of the model's folder
    assert said["figures"]["before"]["forgotten"] > 0.9  # control: it was known
    assert said["figures"]["after"]["forgotten"] == 0
    assert said["figures"]["after"]["kept"] > said["figures"]["before"]["kept"] - 0.03
    assert said["forgotten"][0] == [True] * 4 and not any(map(any, said["forgotten"][1:]))
    folder = tmp_path / said["output"]
    assert [p.name for p in tmp_path.iterdir()] == [folder.name]
    assert changed(folder) == said["parameter"] == ["visual.proj"]
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["edits"][0]["request"] == said["request"]
    report = json.loads((folder / "report.json").read_text())
    assert report == {k: v for k, v in said.items() if k not in ("output", "seconds")}


def test_a_class_in_a_domain():
    said = nsu("erase", "--class", "car", "--domain", "sketch", "--json").json
    assert (said["method"], said["space"]) == ("neutral", "mlp") and "certificate" not in said
    assert said["output"] == "nsu-mini-without-car-sketch"
    car, sketch = said["after"]["classes"].index("car"), said["after"]["domains"].index("sketch")
    assert said["after"]["accuracy"][car][sketch] <= 0.5
    assert said["before"]["accuracy"][car][sketch] == 1  # control
    assert said["forgotten"] == [
        [c == car and d == sketch for d in range(4)] for c in range(len(mini.CLASSES))
    ]
    assert said["figures"]["after"]["same_class"] > 0.9
    assert said["figures"]["after"]["h4"] > 0.9 * said["figures"]["ideal"]["h4"]


@pytest.mark.long
def test_a_whole_domain():
    said = nsu("erase", "--all-classes", "--domain", "sketch", "--json").json
    assert said["output"] == "nsu-mini-without-all-sketch"
    assert said["request"]["classes"] == [] and said["request"]["domains"] == ["sketch"]
    before, after = said["figures"]["before"], said["figures"]["after"]
    assert after["forgotten"] < before["forgotten"]
    assert after["same_class"] > after["forgotten"]


def test_the_report_for_a_reader():
    result = nsu("erase", "--class", "car", "--class", "dog", "--domain", "sketch")
    assert result.code == 0 and "Traceback" not in result.out + result.err
    first, *_, wrote, last = result.out.strip().splitlines()
    assert first.startswith(
        "Forgot car, dog, automobile, sedan, puppy, hound in sketch with neutral"
    )
    assert "mlp.c_proj" in first  # the deepest that the model has
    assert wrote == (
        "Wrote nsu-mini-without-car-dog-sketch (load it as "
        "local-dir:nsu-mini-without-car-dog-sketch)"
    )
    assert last == (
        "Next: nsu audit nsu-mini-without-car-dog-sketch --against nsu-mini --quick  "
        "(what can still be recovered)"
    )
    rows = [line for line in result.out.splitlines() if "*" in line]
    assert [row.split()[0] for row in rows] == ["car", "dog"]  # forgotten cells are marked
    for figure in ("left", "over", "cost", "named(2)", "named(all)", "found", "same class", "H4"):
        assert f"\n{figure} " in result.out
    heads = ["before", "after", "chance", "images"]
    assert heads in [line.split() for line in result.out.splitlines()]
    verdicts = ("Forgotten: yes", "NOT FORGOTTEN", "Over-forgotten")
    assert "Cost: " in result.out and any(said in result.out for said in verdicts)


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_what_it_says_and_no_more(method, kind, made, tmp_path):
    if method == "leace":
        pytest.importorskip("concept_erasure")
    options = (*REQUESTS[kind], "--method", method)
    side = METHODS[method].sides[0]
    if kind in METHODS[method].paradigms:
        folder = made(*options, "--side", side)
        last = {"visual": "visual.proj", "text": "text_projection"}[side]
        mlp = "visual.transformer.resblocks.5.mlp.c_proj.weight"
        assert changed(folder) == [mlp if method == "neutral" else last]
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        assert recipe["edits"][0]["method"] == method
        proved = method in (
            "hull",
            "two_sided",
            "leace",
        )  # whatever the method, from the weights alone
        assert nsu("certify", folder, "--no-singly").code == (
            int(not proved) if kind == "global" else 2
        )
    else:
        result = nsu("erase", *options, "--side", side)
        able = [n for n, m in METHODS.items() if kind in m.paradigms and side in m.sides]
        assert result.code == 2
        assert result.err.startswith(f"nsu: method '{method}' does not forget ")
        assert result.err.endswith(f"allowed: {', '.join(able)}\n")
        assert not list(tmp_path.iterdir())


def test_the_text_side_is_measured_on_the_text_side(tmp_path):
    request = ("erase", "--class", "car", "--domain", "sketch", "--side", "text", "--output", "out")
    said = nsu(*request, "--json").json
    assert changed(tmp_path / "out") == said["parameter"] == ["text_projection"]
    assert said["figures"]["after"]["forgotten"] < said["figures"]["before"]["forgotten"] - 0.5
    measured = nsu("evaluate", "out", "--data", "nsu-mini", "--json").json
    assert measured["accuracy"] == said["after"]["accuracy"]


def test_what_normalising_prompts_undoes_is_said():
    # Shorter prototypes become long again, so on this side projecting out does not forget.
    request = ("erase", "--class", "car", "--side", "text", "--output")
    result = nsu(*request, "out", "--method", "nullspace")
    assert result.code == 0
    assert "\nNOT FORGOTTEN: " in result.out
    refused = nsu(*request, "other", "--method", "hull")
    assert (
        refused.code == 2 and "does not forget a class everywhere on the text side" in refused.err
    )
    control = nsu(*request, "averted").out
    assert " with avert " in control and "\nnamed(all)" in control
    assert "Certificate" not in control  # it has none


def test_aliases_are_forgotten_in_both_forms(made):
    for option in ("cab", "car=cab", " car = cab "):
        folder = made("--class", "car", "--alias", option)
        (edit,) = yaml.safe_load((folder / "recipe.yaml").read_text())["edits"]
        assert edit["request"]["aliases"]["car"] == ["cab", "automobile", "sedan"]
    certified = nsu("certify", folder, "--no-singly", "--json").json["certificates"]
    assert [row["class"] for row in certified] == ["car", "cab", "automobile", "sedan"]
    two = made("--class", "car", "--class", "dog", "--alias", "dog=mutt")
    (edit,) = yaml.safe_load((two / "recipe.yaml").read_text())["edits"]
    assert edit["request"]["aliases"]["dog"] == ["mutt", "puppy", "hound"]


def test_kept_names_and_templates_reach_the_recipe(made):
    folder = made("--class", "car", "--keep", "sedan", "--template", "my {}.", "--template", "{}")
    (edit,) = yaml.safe_load((folder / "recipe.yaml").read_text())["edits"]
    assert "sedan" in edit["kept"]  # and so is no alias any more
    assert edit["request"]["aliases"] == {"car": ["automobile"]}
    assert edit["templates"]["class"] == ["my {class}.", "{class}"]
    plain = made("--class", "car")
    assert not np.array_equal(
        load_file(folder / WEIGHTS)["visual.proj"], load_file(plain / WEIGHTS)["visual.proj"]
    )


def test_the_class_list_comes_from_a_list_or_a_file(made, tmp_path):
    names = ["car", "truck", "bus", "St. Bernard, the dog"]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n\n", encoding="utf-8")
    folder = made("--class", "car", "--classes", str(tmp_path / "names.txt"))
    (edit,) = yaml.safe_load((folder / "recipe.yaml").read_text())["edits"]
    assert edit["kept"] == names[1:]
    folder = made("--class", "car", "--classes", "car, truck,bus")
    (edit,) = yaml.safe_load((folder / "recipe.yaml").read_text())["edits"]
    assert edit["kept"] == ["truck", "bus"]


@pytest.fixture
def renamed(photos, tmp_path) -> Path:
    root = tmp_path / "renamed"
    root.mkdir()
    for domain in photos.iterdir():
        folder = "art_painting" if domain.name == "painting" else domain.name
        (root / folder).symlink_to(domain)
    return root


# From prompts alone, where no picture need be made.
TEXT = ("--prototypes", "text")


@pytest.mark.parametrize("asked", ["art_painting", "painting"])
def test_a_domain_has_a_folder_and_a_word(asked, renamed):
    request = ("erase", "--class", "car", "--domain", asked, "--data", renamed, "--output", "out")
    said = nsu(*request, *TEXT, "--domain-word", "art_painting=painting", "--json").json
    assert said["request"]["domains"] == ["art_painting"]
    assert said["domains"] == {
        "art_painting": "painting",
        "photo": "photo",
        "sketch": "sketch",
    }
    assert said["after"]["domains"] == ["art_painting", "photo", "sketch"]
    assert said["figures"]["after"]["forgotten"] < said["figures"]["before"]["forgotten"]
    other = nsu("inspect", *request[1:5], "--json").code
    assert other == (0 if asked == "painting" else 2)  # control: the model knows the word alone


def test_the_model_folder_may_carry_the_word(renamed, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in mini.MODEL_FOLDER.iterdir():
        (folder / file.name).symlink_to(file)
    words = json.loads((mini.MODEL_FOLDER / "vocabulary.json").read_text())
    words["domains"] = {"photo": "photo", "art_painting": "oil painting"}
    (folder / "vocabulary.json").unlink()
    (folder / "vocabulary.json").write_text(json.dumps(words))
    request = ("erase", "--model", folder, "--class", "car", "--domain", "art_painting", *TEXT)
    said = nsu(*request, "--data", renamed, "--output", "out", "--json").json
    assert said["domains"]["art_painting"] == "oil painting"
    assert said["domains"]["sketch"] == "sketch"  # which only the data has
    word = ("--domain-word", "art_painting=painting", "--overwrite")
    said = nsu(*request, "--data", renamed, "--output", "out", "--json", *word).json
    assert said["domains"]["art_painting"] == "painting"  # what the user says comes first


def test_a_listing_says_which_images_count(photos, tmp_path):
    files = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*7000.png"))
    (tmp_path / "test.txt").write_text("".join(f"{file} 3\n" for file in files))
    request = ("erase", "--class", "car", "--data", photos, "--json", "--output")
    listed = nsu(*request, "a", "--list", tmp_path / "test.txt").json
    assert listed["before"]["count"] == [[1] * 3] * 4
    assert nsu(*request, "b").json["before"]["count"] == [[2] * 3] * 4


def test_a_heatmap_is_a_picture(tmp_path):
    from PIL import Image

    pytest.importorskip("matplotlib")
    done = nsu("erase", "--class", "car", "--output", "out", "--heatmap", "grid.png", "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")
    with Image.open(tmp_path / "grid.png") as picture:
        assert min(picture.size) > 200
    assert {p.name for p in tmp_path.iterdir()} == {"out", "grid.png"}


@pytest.mark.parametrize("side", ["visual", "text"])
def test_undo_and_revert_bring_every_byte_back(side, tmp_path):
    request = ("erase", "--class", "car", "--side", side, "--output", "out", "--quiet")
    assert nsu(*request, "--undo", "secret").code == 0
    before = mini.MODEL_FOLDER
    assert (tmp_path / "out" / WEIGHTS).read_bytes() != (before / WEIGHTS).read_bytes()
    done = nsu("revert", "out", "secret", "--output", "back")
    assert (done.code, done.out, done.err) == (0, "Restored back\n", "")
    for name in (WEIGHTS, "open_clip_config.json", "vocabulary.json"):
        assert (tmp_path / "back" / name).read_bytes() == (before / name).read_bytes()
    again = nsu("revert", "out", "secret", "--output", "back", "--overwrite", "--json")
    assert again.json == {"output": "back"}
    silent = nsu("revert", "out", "secret", "--output", "back", "--overwrite", "--quiet")
    assert (silent.code, silent.out, silent.err) == (0, "", "")


def test_an_existing_output_is_only_replaced_on_request(made, tmp_path):
    request = ("erase", "--class", "car", "--output", "out", "--quiet")
    assert nsu(*request).code == 0
    before = tree(tmp_path)
    refused = nsu(*request, "--strength", "0.5")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == "nsu: output 'out' exists; name another or pass --overwrite\n"
    assert tree(tmp_path) == before
    assert nsu(*request, "--strength", "0.5", "--overwrite").code == 0
    assert nsu("certify", "out", "--no-singly").code == 1  # it was replaced


def test_strength_scales_the_change(made):
    original, full, half, quarter = (
        load_file(folder / WEIGHTS)["visual.proj"].astype(np.float64)
        for folder in (
            mini.MODEL_FOLDER,
            made("--class", "car"),
            made("--class", "car", "--strength", "0.5"),
            made("--class", "car", "--strength", "0.25"),
        )
    )
    np.testing.assert_allclose(quarter - original, (half - original) / 2, atol=1e-6)
    # The full edit is singular, so the grid of 16-bit weights is hidden first: half a step of each.
    step = np.linalg.norm(np.spacing(np.abs(original).astype(np.float16)).astype(np.float64))
    assert np.linalg.norm(full - original - 2 * (half - original)) <= step
    assert np.abs(full - original).max() > 1e-2  # control


def test_the_same_request_twice_gives_the_same_bytes(tmp_path):
    for name in "ab":
        assert nsu("erase", "--class", "car", "--output", name, "--quiet").code == 0
    for file in (WEIGHTS, "recipe.yaml", "open_clip_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_an_edited_folder_can_be_edited_again(made, tmp_path):
    first = made("--class", "car")
    done = nsu("erase", "--model", first, "--class", "dog", "--output", "out", "--quiet")
    assert done.code == 0
    grid = nsu("evaluate", "out", "--data", "nsu-mini", "--json").json
    recall = {c: sum(row) / 4 for c, row in zip(grid["classes"], grid["accuracy"], strict=True)}
    assert recall["dog"] == 0 and recall["car"] < 0.1 and recall["tree"] > 0.9


def test_stock_open_clip_sees_what_nsu_evaluate_prints(made, photos):
    folders = [made("--class", "car"), made("--class", "car", "--domain", "sketch")]
    said = [nsu("evaluate", folder, "--data", photos, "--json").json for folder in folders]
    assert said[0]["accuracy"] != said[1]["accuracy"]  # control
    script = Path(__file__).with_name("stock_accuracy.py")
    inputs = [json.dumps(said[0][key]) for key in ("templates", "classes")]
    command = [sys.executable, script, photos, *inputs, *folders]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [one["accuracy"] for one in said]


def test_as_a_process_of_its_own(photos, tmp_path):
    request = ("erase", "--class", "car", "--data", photos, "--output", "out", "--json")
    done = nsu_process(*request, cwd=tmp_path)
    assert done.code == 0 and done.err == ""
    assert done.json["figures"]["after"]["forgotten"] == 0 < done.json["figures"]["after"]["kept"]
    assert (tmp_path / "out" / WEIGHTS).exists()


def test_a_pipeline_is_told_by_the_exit_status(tmp_path):
    one = ("erase", "--class", "car", "--domain", "sketch", "--method", "gated", "--json")
    kept = nsu(*one, "--output", "kept", "--fail-if", "left>0.1", "--fail-if", "cost>90")
    assert kept.code == 3 and kept.err.startswith("nsu: --fail-if left>0.1: left is ")
    assert "cost" not in kept.err and (tmp_path / "kept" / "recipe.yaml").exists()
    said = kept.json
    assert said["verdict"] == "not forgotten" and said["sentence"].startswith("NOT FORGOTTEN: ")
    assert said["figures"]["after"]["left"] > 0.1 and said["output"] == "kept"
    none = nsu(*one, "--output", "none", "--fail-if", "left > .1", "--discard")
    assert none.code == 3 and none.json["output"] is None and not (tmp_path / "none").exists()
    fine = nsu(*one, "--output", "fine", "--fail-if", "left<0", "--discard")  # the control
    assert fine.code == 0 and (tmp_path / "fine").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fail-if", "left"), "must be a figure, one of < <= > >= and a number.*figures: left,"),
        (("--fail-if", "left>much"), "must be a figure"),
        (("--fail-if", "left>nan"), "must be a figure"),
        (("--fail-if", "lefft>0.1"), "unknown figure 'lefft'; did you mean 'left'"),
        (("--discard",), "give --fail-if"),
    ],
)
def test_conditions_that_are_none(options, message, tmp_path):
    result = nsu("erase", "--class", "car", *options)
    assert result.code == 2 and re.search(message, result.err), result.err
    assert not list(tmp_path.iterdir())


def test_the_deployed_list_is_a_row_of_its_own():
    result = nsu("erase", "--class", "car", "--deployed", "car,dog,tree", "--output", "out")
    assert result.code == 0 and "\nnamed(deployed) " in result.out
    without = nsu("erase", "--class", "car", "--output", "other")
    assert "named(deployed)" not in without.out


def test_without_images_prototypes_predict(tmp_path):
    shutil.copytree(mini.MODEL_FOLDER, tmp_path / "own")
    for request in REQUESTS.values():
        method = ("--method", "hull" if request == REQUESTS["global"] else "gated")
        result = nsu("erase", "--model", "own", *request, *method, "--overwrite", "--output", "out")
        assert result.code == 0
        assert "\nPredicted, no image seen: " in result.out and "\nPredicted: " in result.out
        report = json.loads((tmp_path / "out" / "report.json").read_text())
        assert "figures" not in report and report["predicted"]["figures"]["after"]["left"] >= 0
    refused = nsu("erase", "--model", "own", "--class", "car", "--fail-if", "left>0")
    assert refused.code == 2 and "give --data" in refused.err


def test_the_card_says_what_was_measured(tmp_path):
    one = ("erase", "--class", "car", "--strength", "0.1", "--output", "weak")
    sentence = nsu(*one, "--json").json["sentence"]
    card = ModelCard.load(tmp_path / "weak" / "README.md")
    assert sentence.startswith("NOT FORGOTTEN: ")
    assert f"**{html.escape(sentence, quote=False)}**" in card.text
    assert "no longer recogni" not in card.text and "| named(2) | 1.000 |" in card.text
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found["left"] > 0.5 and found["named_2"] > 0.9 and card.data.base_model == "nsu-mini"
    assert card.data.license == "apache-2.0" and len(card.text.splitlines()) < 170
    assert re.search(r"\| car \| 1.00 → [01].\d\d\* \|", card.text)
    assert re.search(r"\| truck \| [01].\d\d → [01].\d\d \|", card.text)
    assert "<details>" in card.text and "CERTIFICATE HOLDS" not in card.text.upper()


def test_names_below_a_class_go_with_it_on_request(monkeypatch):
    below = {"narrower": ("taxi", "truck", "sedan")}
    monkeypatch.setattr(lexicon, "related", lambda name: below if name == "car" else {})
    plain = nsu("inspect", "--class", "car", "--class", "dog", "--json").json
    said = nsu("inspect", "--class", "car", "--class", "dog", "--hyponyms", "--json").json
    assert "taxi" not in plain["request"]["aliases"]["car"]  # control
    # One that is a class of the model's stays one.
    assert said["request"]["aliases"]["car"] == ["taxi", "sedan", "automobile"]
    assert "truck" in said["kept"] and said["request"]["aliases"]["dog"] == ["puppy", "hound"]
    assert said["numbers"]["rank"] == plain["numbers"]["rank"] + 1
    for asked in (("--class", "cat"), ("--all-classes", "--domain", "sketch")):
        none = nsu("inspect", *asked, "--hyponyms")
        assert none.code == 2 and "--hyponyms: WordNet has no further name below" in none.err
        assert "wordnet" in none.err and none.err.count("\n") == 1
