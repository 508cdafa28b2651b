"""Cells: measured as the library measures, kept, found again, and not lost to one that fails."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import CLASSES, DOMAINS

from nullspace_unlearn import erasers, plans, train, unlearn
from nullspace_unlearn.bench import datasets, runner
from nullspace_unlearn.bench.datasets import find_pools
from nullspace_unlearn.bench.recipe import (
    Data,
    Entry,
    FeatureFile,
    Folder,
    Model,
    Recipe,
    Request,
    Sets,
)
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data.folders import read_folder
from nullspace_unlearn.evaluate.compare import Comparison, compare, compare_models
from nullspace_unlearn.evaluate.zeroshot import grid_to_json, predict
from nullspace_unlearn.features.embed import embed
from nullspace_unlearn.files import OutputExists
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.linalg import unit
from nullspace_unlearn.prototypes import class_prototypes, from_images
from nullspace_unlearn.words import Words

FOLDER = Folder("images", "splits/*_test.txt", "splits/*_train.txt")
CELL = Request("cell", classes=("car",), domains=("sketch",))
DOMAIN_WORDS = {name: name for name in DOMAINS}


def recipe(*methods: Entry, requests: tuple[Request, ...] = (CELL,), data: Data = FOLDER,
           seeds: tuple[int, ...] = (0,)) -> Recipe:  # fmt: skip
    model = None if isinstance(data, FeatureFile) else Model("nsu-mini")
    return Recipe("mine", data, requests, methods, model, seeds=seeds)


def run(given: Recipe, root: Path, clip: Clip | None, output: Path) -> runner.Done:
    pools = find_pools(given, root)
    runner.claim(output, given, "", overwrite=False)
    return runner.run(given, pools, clip, runner.trials_of(given, pools), output, quiet=True)


def same(found: dict[str, Any], expected: Comparison) -> None:
    """A trial's JSON says what a comparison does."""
    for name in ("before", "after", "ideal"):
        grid = grid_to_json(getattr(expected, name), expected.classes, expected.domains)
        assert found["grids"][name] == grid
    assert found["figures"] == expected.figures
    assert found["forgotten"] == expected.mask.tolist()


def reported(root: Path, clip: Clip, hidden: bool = False) -> Any:
    listing = root / "all_test.txt"
    listing.write_text("".join(p.read_text() for p in sorted((root / "splits").glob("*_test.txt"))))
    return embed(clip, read_folder(root / "images", listing=listing), quiet=True, hidden=hidden)


def drawn(root: Path) -> Any:
    listing = root / "all_train.txt"
    lists = sorted((root / "splits").glob("*_train.txt"))
    listing.write_text("".join(path.read_text() for path in lists))
    return read_folder(root / "images", listing=listing)


@pytest.mark.parametrize(
    "space", ["embedding", pytest.param("hidden", marks=pytest.mark.slow), "mlp"]
)
def test_a_closed_form_gives_what_the_library_gives(
    space: Any, root: Path, clip: Clip, tmp_path: Path
) -> None:
    entry = Entry("gated", prototypes="images", shots=2, space=space)
    done = run(recipe(entry), root, clip, tmp_path / "out")
    forget = Forget(("car",), ("sketch",))
    plan = plans.plan(clip, forget, classes=CLASSES, domains=DOMAIN_WORDS)
    visual = from_images(clip, drawn(root), shots=2, space=space, quiet=True)
    edit = unlearn.erase(clip, plan, visual=visual, space=space)
    edited = edit.fold(clip)
    templates = plan.words.class_templates
    features = reported(root, clip, hidden=True)
    again = reported(root, edited) if space == "mlp" else None
    same(done.runs[0], compare(clip, edited, edit, "visual", features, forget, templates, again))
    assert done.runs[0]["images"] == 12 and done.runs[0]["seconds"] > 0


@pytest.mark.parametrize("name", ["hull", "avert", "nullspace"])
def test_a_closed_form_from_text_edits_its_own_side(
    name: str, root: Path, clip: Clip, tmp_path: Path
) -> None:
    entry = Entry(name, strength=0.5)
    request = Request("global", classes=("dog",))
    done = run(recipe(entry, requests=(request,)), root, clip, tmp_path / "out")
    forget, side = Forget(("dog",)), entry.side
    assert side is not None
    plan = plans.plan(clip, forget, classes=CLASSES, domains=DOMAIN_WORDS, method=name, side=side)
    edit = unlearn.erase(clip, plan, strength=0.5)
    templates = plan.words.class_templates
    measured = compare(
        clip, edit.fold(clip, side), edit, side, reported(root, clip), forget, templates
    )
    same(done.runs[0], measured)
    assert done.runs[0]["images"] == 0


def test_a_trained_method_gives_what_the_library_gives(
    root: Path, clip: Clip, tmp_path: Path
) -> None:
    request = Request("domain", domains=("sketch",))
    entry = Entry("ascent", shots=1, validation=1, set={"lr": 1e-4}, by_kind={
        "domain": {"epochs": 1}})  # fmt: skip
    done = run(recipe(entry, requests=(request,), seeds=(1,)), root, clip, tmp_path / "out")
    assert clip.words is not None
    forget, parts = Forget(domains=("sketch",)), drawn(root).split(1, 1, 1)
    words = Words(CLASSES, DOMAIN_WORDS, clip.words.class_templates, clip.words.cell_templates)
    shots = [train.from_source(clip, part) for part in (parts.given, parts.validation)]
    task = train.Task(clip, forget, words, shots[0], shots[1], 1)
    made = train.configure("ascent", {"lr": "1e-4", "epochs": "1"})
    trained = train.train(made, task, quiet=True).clip
    both = [reported(root, one) for one in (clip, trained)]
    same(done.runs[0], compare_models(clip, trained, *both, forget, words.class_templates))
    assert done.runs[0]["images"] == 12 and done.runs[0]["log"]["epochs"] == 1


def test_features_are_edited_without_a_model(tmp_path: Path) -> None:
    import numpy as np

    random = np.random.default_rng(0)
    text = random.normal(size=(6, 16))
    labels = np.repeat(np.arange(6), 5)
    images = text[labels] + random.normal(size=(30, 16))
    np.savez(tmp_path / "f.npz", image_features=images, labels=labels, text_features=text)
    given = recipe(
        Entry("hull"), Entry("ccup", strength=0.5),
        requests=(Request("global", classes=("2", "4"), choose="together"),),
        data=FeatureFile("f.npz"),
    )  # fmt: skip
    done = run(given, tmp_path, None, tmp_path / "out")
    rows = unit(torch.from_numpy(text).float().double())
    gone = torch.tensor([False, False, True, False, True, False])
    for found, eraser, strength in zip(done.runs, (erasers.hull, erasers.ccup), (1, 0.5),
                                       strict=True):  # fmt: skip
        edit = eraser(rows[gone], rows[~gone]).scale(strength)
        predicted = predict(edit.apply(torch.from_numpy(images).float()), rows.float())
        right = (predicted.numpy() == labels).reshape(6, 5).mean(1)
        assert [row[0] for row in found["grids"]["after"]["accuracy"]] == pytest.approx(right)


def test_other_data_sets_are_measured_with_their_own_classes(
    root: Path, clip: Clip, tmp_path: Path
) -> None:
    sets = Sets({"a": "sets/a/photo", "b": "sets/b/photo"})
    given = recipe(
        Entry("hull"), Entry("avert"), Entry("finetune", shots=1, set={"epochs": 1}),
        requests=(Request("global", classes=("car",), dataset="a"),),
        data=replace(sets, held_out=0.5),
    )  # fmt: skip
    given = replace(given, methods=tuple(replace(m, validation=0) for m in given.methods))
    done = run(given, root, clip, tmp_path / "out")
    assert [run["label"] for run in done.runs] == ["hull", "avert", "finetune"]
    b = find_pools(given, root)[1]
    features = b.embed(clip, False, True)
    assert clip.words is not None
    text = class_prototypes(clip, b.classes, clip.words.class_templates).float()

    def accuracy(embeddings: Any, prototypes: Any) -> float:
        return float((predict(embeddings, prototypes) == features.labels).double().mean())

    names = ("car", "truck", "dog", "tree")  # of both data sets, which all are to stay but one
    plan = plans.plan(clip, Forget(("car",)), classes=names, domains={"all": "photo"},
                        method="hull")  # fmt: skip
    edit = unlearn.erase(clip, plan)
    before, after = done.runs[0]["others"]["b"]
    assert before == accuracy(features.embeddings, text)
    assert after == accuracy(edit.apply(features.embeddings), text)
    for found in done.runs:
        assert set(found["others"]) == {"b"} and found["grids"]["after"]["classes"] == [
            "car", "truck"]  # fmt: skip


def test_what_is_done_is_not_done_again(
    root: Path, clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracle is a count of the calls that do the work."""
    calls = []
    original = runner.run_method

    def counted(entry: Entry, *rest: Any) -> Any:
        calls.append(entry.label)
        return original(entry, *rest)

    monkeypatch.setattr(runner, "run_method", counted)
    given = recipe(Entry("gated"), Entry("nullspace"))
    first = run(given, root, clip, tmp_path / "out")
    assert calls == ["gated", "nullspace"] and first.found == 0
    again = run(given, root, clip, tmp_path / "out")
    assert len(calls) == 2 and again.found == 2 and again.runs == first.runs
    # A changed number runs its own trial alone, and leaves the old one where it is.
    changed = recipe(Entry("gated", strength=0.9, label="gated"), Entry("nullspace"))
    assert run(changed, root, clip, tmp_path / "out").found == 1
    assert calls[2:] == ["gated"] and len(list((tmp_path / "out/trials/gated").iterdir())) == 2
    assert run(given, root, clip, tmp_path / "out").found == 2
    # A damaged result is made again, and so is one that says it is another's.
    (file,) = (tmp_path / "out" / "trials" / "nullspace").iterdir()
    whole = file.read_text()
    for broken in (whole[:100], "[]", json.dumps({**json.loads(whole), "made_from": {}}), "\0"):
        file.write_text(broken)
        assert run(given, root, clip, tmp_path / "out").found == 1
        assert json.loads(file.read_text())["grids"] == json.loads(whole)["grids"]


def test_a_trial_that_fails_is_recorded_and_tried_again(
    root: Path, clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = runner.run_method

    def failing(entry: Entry, *rest: Any) -> Any:
        if entry.name == "gated":
            raise RuntimeError("out of\n memory")
        return original(entry, *rest)

    given = recipe(Entry("gated"), Entry("nullspace"))
    with monkeypatch.context() as patched:
        patched.setattr(runner, "run_method", failing)
        done = run(given, root, clip, tmp_path / "out")
    assert [run["label"] for run in done.runs] == ["nullspace"]
    assert [(c.entry.label, e) for c, e in done.failed] == [
        ("gated", "RuntimeError: out of memory")
    ]
    (file,) = (tmp_path / "out" / "trials" / "gated").iterdir()
    assert json.loads(file.read_text())["error"] == "RuntimeError: out of memory"
    again = run(given, root, clip, tmp_path / "out")
    assert (len(again.runs), again.failed, again.found) == (2, [], 1)


def test_embeddings_are_kept_with_the_results(
    root: Path, clip: Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = recipe(Entry("gated"))
    first = run(given, root, clip, tmp_path / "out")
    (kept,) = (tmp_path / "out" / "embeddings").iterdir()
    other = recipe(Entry("nullspace"))
    pools = find_pools(other, root)

    def no_images(*_: object, **__: object) -> Any:
        raise AssertionError("embedded again")

    monkeypatch.setattr(datasets, "embed", no_images)
    trials = runner.trials_of(other, pools)
    done = runner.run(other, pools, clip, trials, tmp_path / "out", quiet=True)
    assert done.runs[0]["grids"]["before"] == first.runs[0]["grids"]["before"]
    kept.write_bytes(b"cut short")  # control: it was read from there
    with pytest.raises(AssertionError, match="embedded again"):
        runner.run(recipe(Entry("leace")), pools, clip, runner.trials_of(
            recipe(Entry("leace")), pools), tmp_path / "out", quiet=True)  # fmt: skip


def test_only_methods_that_are_given_images_have_a_trial_a_draw(root: Path) -> None:
    given = recipe(Entry("gated"), Entry("gated", prototypes="images"), seeds=(3, 5))
    trials = runner.trials_of(given, find_pools(given, root))
    assert [(c.entry.label, c.seed) for c in trials] == [
        ("gated", 0), ("gated, 8 images", 3), ("gated, 8 images", 5)]  # fmt: skip
    twice = replace(given, requests=(CELL, CELL))  # the same request is one
    assert len(runner.trials_of(twice, find_pools(given, root))) == 3
    with pytest.raises(ValueError, match="gated, 8 images is given images, and the data keep none"):
        without = replace(given, data=Folder("images"))
        runner.trials_of(without, find_pools(without, root))


def test_a_request_that_cannot_be_met_says_which(root: Path) -> None:
    given = recipe(Entry("gated"), requests=(CELL, replace(CELL, classes=("cat",))))
    with pytest.raises(ValueError, match=r"recipe 'mine': requests\[1\]: the data have no class"):
        runner.trials_of(given, find_pools(given, root))


def test_another_folder_is_never_written_to_or_removed(tmp_path: Path) -> None:
    given = recipe(Entry("gated"))
    model = tmp_path / "model"
    model.mkdir()
    (model / "recipe.yaml").write_text("base_model: x\n")  # as nsu erase writes it
    for overwrite in (False, True):
        with pytest.raises(OutputExists, match="is no benchmark's"):
            runner.claim(model, given, "", overwrite)
    ours = tmp_path / "ours"
    runner.claim(ours, given, "name: mine\n", overwrite=False)
    (ours / "trials").mkdir()
    runner.claim(ours, given, "name: mine\n", overwrite=False)  # which goes on there
    assert (ours / "trials").exists()
    with pytest.raises(OutputExists, match="another recipe than 'yours'"):
        runner.claim(ours, replace(given, name="yours"), "", overwrite=False)
    runner.claim(ours, replace(given, name="yours"), "", overwrite=True)
    assert not (ours / "trials").exists()


def test_a_label_cannot_lead_out_of_the_folder(root: Path, clip: Clip, tmp_path: Path) -> None:
    for label in ("../../up", "..", "/x"):
        run(recipe(Entry("gated", label=label)), root, clip, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert len(list((tmp_path / "out" / "trials").glob("*/*.json"))) == 3


def test_a_relative_model_folder_is_below_the_data(tmp_path: Path) -> None:
    assert runner.model_name(Model("local-dir:models/a"), tmp_path) == (
        f"local-dir:{tmp_path}/models/a"
    )
    assert runner.model_name(Model("local-dir:/models/a"), tmp_path) == "local-dir:/models/a"
    assert runner.model_name(Model("ViT-B-32"), tmp_path) == "ViT-B-32"
