"""`nsu audit`: of folders and feature files, cut short, asked anew, refused."""

from __future__ import annotations

import json

import numpy as np
import pico
import pytest
import torch
from shell import nsu, tree

from nullspace_unlearn.audit import names
from nullspace_unlearn.audit.question import NOT_FORGOTTEN, Question

ONLY = ("--only", "yardstick,search")


@pytest.fixture(autouse=True)
def few_phrasings(monkeypatch):
    monkeypatch.setattr(names, "wordings", lambda: ("{class}", "a {class}"))
    monkeypatch.setattr(names, "standard_templates", lambda: ())
    monkeypatch.setattr(names, "_ROUNDABOUT", (("negation", "not a {class}"),))
    monkeypatch.setattr(names, "related", lambda name: {"plural": ("cars",)})


def test_an_audit_of_an_edited_folder(made, tmp_path):
    edited = made("--class", "car")
    given = (
        "audit",
        edited,
        "--against",
        "nsu-mini",
        "--only",
        "yardstick,names,collateral",
        "--retrained",
        made("--class", "car"),
        "--other",
        "nsu-mini",
    )
    first = nsu(*given, "--output", "a", "--json")
    assert first.code == 0, first.err
    said = first.json
    assert said == json.loads((tmp_path / "a" / "audit.json").read_text("utf-8"))
    assert [one["name"] for one in said["questions"]] == ["yardstick", "names", "collateral"]
    assert said["request"]["words"] == "car everywhere"
    assert said["images"] == {"forgotten": 8, "others": 88}
    left = said["questions"][0]["findings"][0]
    assert left["values"]["edited"] < 0.2 and left["values"]["random"] > 0.5
    assert left["values"]["retrained"] == left["values"]["edited"]
    elsewhere = {one["name"]: one for one in said["questions"][2]["findings"]}["other_1_accuracy"]
    assert elsewhere["images"] == 88  # those of cars are left out
    assert elsewhere["values"]["edited"] > 0.8 and said["others"] == [said["data"]]
    kinds = {row["kind"] for row in said["questions"][1]["rows"]}
    assert {"template", "composed", "alias", "negation", "misspelling"} <= kinds
    before = tree(tmp_path / "a" / "answers")
    again = nsu(*given, "--output", "a", "--json")
    assert again.json == said  # byte for byte, and nothing was asked again
    assert tree(tmp_path / "a" / "answers") == before
    shown = nsu(*given, "--output", "a")
    assert "Asked by name: " in shown.out and "Wrote a/audit.json" in shown.out


def test_an_interrupted_audit_goes_on(made, tmp_path, monkeypatch):
    given = ("audit", made("--class", "car"), "--against", "nsu-mini", *ONLY, "--output", "a")
    answer = Question.answer

    def stop(self, case):
        if self.name == "search":
            raise KeyboardInterrupt
        return answer(self, case)

    monkeypatch.setattr(Question, "answer", stop)
    cut = nsu(*given)
    assert cut.code == 130 and "run the same command again" in cut.err
    assert not (tmp_path / "a" / "audit.json").exists()
    kept = tree(tmp_path / "a" / "answers")
    assert len(kept) == 1
    monkeypatch.setattr(Question, "answer", answer)
    done = nsu(*given, "--json")
    assert done.code == 0 and len(done.json["questions"]) == 2
    assert kept.items() <= tree(tmp_path / "a" / "answers").items()
    damaged = next((tmp_path / "a" / "answers").glob("search-*"))
    damaged.write_text("{")
    assert nsu(*given, "--json").json == done.json  # asked anew


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the edited model is the original"),
        (("--only", "name"), "no question 'name'; allowed: yardstick"),
        (("--class", "spoon"), "unknown class 'spoon'"),
        (("--other", "absent"), "absent"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    result = nsu("audit", "nsu-mini", "--against", "nsu-mini", *arguments)
    assert result.code == 2 and message in result.err and result.err.count("\n") == 1


def test_a_stranger_is_refused(made, tmp_path):
    other = pico.write("ViT-B-32", tmp_path / "pico")
    result = nsu("audit", other, "--against", "nsu-mini", "--class", "car", *ONLY)
    assert result.code == 2 and "does not descend from the original" in result.err


def test_the_folder_of_something_else_is_left_alone(made, tmp_path):
    edited = made("--class", "car")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("years of work")
    given = ("audit", edited, "--against", "nsu-mini", "--only", "yardstick")
    for more in ((), ("--overwrite",)):
        result = nsu(*given, "--output", "a", *more)
        assert result.code == 2 and "is no audit's" in result.err
    assert (tmp_path / "a" / "thesis.txt").read_text() == "years of work"
    assert nsu(*given, "--output", "b").code == 0
    other = (*given[:1], made("--class", "dog"), *given[2:])
    result = nsu(*other, "--output", "b")
    assert result.code == 2 and "audit of something else" in result.err
    (tmp_path / "b" / "thesis.txt").write_text("years of work")
    result = nsu(*other, "--output", "b", "--overwrite")
    assert result.code == 2 and "holds 'thesis.txt', which is not of an audit" in result.err
    old = list((tmp_path / "b" / "answers").iterdir())
    assert old and (tmp_path / "b" / "audit.json").exists()  # all is there still
    (tmp_path / "b" / "thesis.txt").unlink()
    assert nsu(*other, "--output", "b", "--overwrite").code == 0
    assert not any(file.exists() for file in old)


def _features(path, rows, labels, text):
    np.savez(path, image_features=rows, labels=labels, text_features=text,
             class_names=["car", "dog", "tree"])  # fmt: skip
    return path


def test_feature_files_stand_for_models(tmp_path):
    text = torch.eye(8)[:3]
    labels = torch.arange(60) % 3
    rows = text[labels] + 0.1 * torch.randn(60, 8)
    gone = rows - (rows @ text[:1].T) @ text[:1]
    files = [_features(tmp_path / name, r.numpy(), labels.numpy(), text.numpy())
             for name, r in (("before.npz", rows), ("after.npz", gone))]  # fmt: skip
    given = ("--against", files[0], "--class", "car", "--json")
    done = nsu("audit", files[1], *given, "--only", "yardstick,names,collateral", "--output", "a")
    assert done.code == 0, done.err
    values = done.json["questions"][0]["findings"][0]["values"]
    assert values["original"] == 1 and values["edited"] < values["random"]
    untouched = nsu("audit", files[0], *given, "--only", "yardstick", "--output", "b")
    assert untouched.json["questions"][0]["verdict"] == NOT_FORGOTTEN  # control
    few = _features(tmp_path / "few.npz", rows[:4].numpy(), [0, 1, 1, 2], text.numpy())
    result = nsu("audit", few, "--against", few, "--class", "car")
    assert result.code == 2 and "there is 1 image of 'car'" in result.err and "2" in result.err
    other = _features(tmp_path / "other.npz", rows.numpy(), labels.flip(0).numpy(), text.numpy())
    result = nsu("audit", other, *given)
    assert result.code == 2 and "not of the original's images" in result.err


def test_a_feature_file_of_the_original_and_a_projection_edit(made, tmp_path):
    edited = made("--class", "car")
    given = ("audit", edited, "--against", "nsu-mini", "--only", "yardstick", "--json")
    images = nsu(*given, "--output", "images").json
    for hidden in (True, False):
        file = tmp_path / f"{hidden}.safetensors"
        more = ("--hidden",) if hidden else ()
        made_file = nsu("embed", "--data", "nsu-mini", "--output", file, *more)
        assert made_file.code == 0, made_file.err
        told = nsu(*given, "--data", file, "--output", tmp_path / f"{hidden}").json
        for one, other in zip(
            told["questions"][0]["findings"], images["questions"][0]["findings"], strict=True
        ):
            assert one["values"] == pytest.approx(other["values"], abs=1e-3)
