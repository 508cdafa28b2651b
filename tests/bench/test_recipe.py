"""Recipes: those that come along, and every way one can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from nullspace_unlearn.bench.recipe import (
    METRICS,
    Folder,
    Recipe,
    Request,
    find_recipe,
    packaged,
    read_recipe,
)

GOOD = """\
name: mine
model: {name: nsu-mini}
data: {kind: bundled, each: 3}
requests: [{kind: global, classes: [car]}]
methods: [{name: hull}]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", packaged())
def test_every_recipe_that_comes_along_is_one_and_says_where_its_data_are_from(name: str) -> None:
    recipe = read_recipe(find_recipe(name))
    assert recipe.name == name and recipe.about
    assert recipe.data.where or not recipe.data.paths


def test_the_recipes_that_were_asked_for_come_along() -> None:
    asked = {"bundled", "pacs", "office-home", "domainnet", "mini-domainnet", "imagenet-sketch-r",
             "kravets", "cifar10", "cifar100", "features"}  # fmt: skip
    assert asked <= set(packaged())
    link = Path(__file__).parents[2] / "benchmarks" / "recipes"
    assert {path.stem for path in link.glob("*.yaml")} == set(packaged())


def test_the_example_of_the_documentation_is_a_recipe(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    example = text.split("```yaml\n")[1].split("```")[0]
    assert len(read_recipe(written(tmp_path, example)).requests) == 5


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, GOOD))
    assert isinstance(recipe, Recipe)
    assert recipe.requests == (Request("global", classes=("car",)),)
    assert recipe.seeds == (0,) and recipe.metrics == METRICS
    assert recipe.methods[0].label == "hull" and recipe.methods[0].side == "visual"


def test_labels_tell_methods_apart(tmp_path: Path) -> None:
    methods = """[{name: hull}, {name: two_sided, prototypes: images, shots: 4},
        {name: hull, strength: 0.5}, {name: salun, label: ours, set: {lr: 1e-4}}]"""
    recipe = read_recipe(written(tmp_path, GOOD.replace("[{name: hull}]", methods)))
    labels = [method.label for method in recipe.methods]
    assert labels == ["hull", "two_sided, 4 images", "hull, strength 0.5", "ours"]
    assert [method.drawn for method in recipe.methods] == [False, True, False, True]
    assert recipe.methods[3].numbers("global") == {"lr": "1e-4"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("classes:", "clases:", "requests[0]: unknown key 'clases'; did you mean 'classes'?"),
        ("each: 3", "eahc: 3", "data: unknown key 'eahc'; did you mean 'each'?"),
        ("name: mine", "nmae: mine", "unknown key 'nmae'; did you mean 'name'?"),
        ("name: mine", "1: mine", "unknown key '1'; allowed: name, data"),
        ("name: mine\n", "", "the key 'name' is missing"),
        ("name: mine", "name: a/b", "name must be one word of a path, got 'a/b'"),
        ("name: mine", "name: mine\nname: yours", "key 'name' is given twice"),
        ("bundled", "bundeld", "data.kind: 'bundeld' is not known; did you mean 'bundled'?"),
        ("kind: bundled, ", "", "data: the key 'kind' is missing"),
        ("each: 3", "each: true", "data.each: expected a whole number, got True"),
        ("each: 3", "each: three", "data.each: expected a whole number, got 'three'"),
        ("[car]", "car", "requests[0].classes: expected a list, got 'car'"),
        ("[car]", "[1]", "requests[0].classes[0]: expected text, got 1"),
        ("global", "everywhere", "requests[0].kind: 'everywhere' is not known; allowed: global"),
        ("[car]", "[car], choose: most", "'most' is not known; allowed: each, together, or expect"),
        ("[car]", "[car], choose: 0", "requests[0]: choose must be each, together or a number"),
        ("[car]", "[car], size: 0", "size must be from 1"),
        ("[car]", "[car], domains: [sketch]", "a global request forgets classes everywhere"),
        ("classes: [car]", "choose: together", "together takes all that is listed: give classes"),
        ("[car]", "[car], dataset: dogs", "are one data set: leave out dataset"),
        ("hull", "hul", "methods[0]: unknown method 'hul'; did you mean 'hull'?"),
        ("hull", "gated", "gated is run on requests of kind cell, domain, and there are none"),
        ("hull", "hull, side: text", "hull edits the visual side, not text"),
        ("hull", "hull, prototypes: images", "hull takes text alone; neutral, gated, two_sided"),
        ("hull", "hull, space: mlp", "hull reads embedding, not mlp"),
        ("hull", "hull, strength: 3", "strength must lie in (0, 2], got 3"),
        ("hull", "hull, set: {lr: 1}", "hull has no number 'lr'"),
        ("hull", "hull, kinds: [cell]", "hull takes requests of kind global, not cell"),
        ("hull", "two_sided", "two_sided must be shown images here"),
        ("hull", "salun, strength: 0.5", "salun is trained: strength is for closed forms"),
        ("hull", "salun, set: {epoch: 3}", "salun has no number 'epoch' (did you mean 'epochs'?)"),
        ("hull", "salun, by_kind: {global: {lr: -1}}", "lr of salun must be finite"),
        ("hull", "salun, shots: 0", "shots must be from 1"),
        ("[{name: hull}]", "[{name: hull}, {name: hull}]", "two methods are labelled 'hull'"),
        ("hull", "hull, label: ideal", "no method can be labelled 'ideal'"),
        ("[{name: hull}]", "[]", "methods is empty"),
        ("model: {name: nsu-mini}\n", "", "data of kind bundled need a model"),
        ("nsu-mini", "nsu-mini, templates: [a photo]", "model: template 'a photo' must hold {cla"),
        ("bundled, each: 3", "features, path: f.npz", "measured without a model: leave out model"),
        ("bundled, each: 3", "sets, sets: {a: b}", "sets names fewer than two data sets"),
        ("bundled, each: 3", "sets, sets: {a: b, c: d}", "a request must name its dataset, one"),
        ("bundled, each: 3", "folder, path: p, held_out: 1", "held_out is a share from 0 to below"),
        ("bundled, each: 3", "domains, folders: {}", "data: folders names no domain"),
        ("bundled, each: 3", "domains, folders: {a: 1}", "data.folders.a: expected text, got 1"),
        ("[{name: hull}]", "[{name: hull}]\nseeds: [1, 1]", "seeds must be different numbers"),
        ("[{name: hull}]", "[{name: hull}]\nmetrics: [h5]", "metrics[0]: 'h5' is not known; did"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(
    old: str, new: str, said: str, tmp_path: Path
) -> None:
    read_recipe(written(tmp_path, GOOD))  # control
    assert old in GOOD
    with pytest.raises(ValueError) as caught:
        read_recipe(written(tmp_path, GOOD.replace(old, new, 1)))
    message = str(caught.value)
    assert said in message and "mine.yaml" in message and "\n" not in message


@pytest.mark.parametrize("text", ["", "- a", "a: [", "\x00", "!!python/object:os.system {}"])
def test_what_is_no_recipe_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine.yaml"):
        read_recipe(written(tmp_path, text))


def test_a_feature_file_takes_closed_forms_from_text_alone(tmp_path: Path) -> None:
    file = GOOD.replace("model: {name: nsu-mini}\n", "")
    file = file.replace("bundled, each: 3", "features, path: f.npz")
    read_recipe(written(tmp_path, file))
    for method in ("salun", "avert", "two_sided, prototypes: images"):
        with pytest.raises(ValueError, match="needs a model, and a feature file has none"):
            read_recipe(written(tmp_path, file.replace("hull", method)))
    domain = file.replace("global, classes: [car]", "domain").replace("hull", "nullspace")
    with pytest.raises(ValueError, match="have no domains: requests must be global"):
        read_recipe(written(tmp_path, domain))


def test_a_recipe_is_found_by_its_path_or_its_name(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    assert find_recipe(str(path)) == path
    assert find_recipe("pacs") == packaged()["pacs"]
    with pytest.raises(ValueError, match="'pacz' is no file and .* did you mean 'pacs'?"):
        find_recipe("pacz")


def test_lists_need_not_be_there_where_a_share_is_held_out() -> None:
    lists = {"report": "s/*_test.txt", "draw": "s/*_train.txt"}
    assert Folder("images", **lists).paths == ("images", "s/*_test.txt", "s/*_train.txt")
    assert Folder("images", **lists, held_out=0.2).paths == ("images",)
