"""`nsu export` and `nsu push`; the hub is played by a stand-in that keeps what it is sent."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from shell import nsu

from nullspace_unlearn.clip import push


class Hub:
    """What `HfApi` is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []

    def create_repo(self, repository: str, **options: Any) -> str:
        self.asked.append((repository, options))
        return f"https://hub/{repository}"

    def upload_folder(self, **options: Any) -> None:
        self.asked.append((options.pop("repo_id"), options))


@pytest.fixture
def hub(monkeypatch) -> Hub:
    hub = Hub()
    monkeypatch.setattr(push, "HfApi", lambda: hub)
    return hub


def test_nothing_is_uploaded_unless_said(made, hub):
    folder = made("--class", "car")
    told = nsu("push", folder, "me/forgetful")
    assert told.code == 0 and not hub.asked
    assert "Nothing was uploaded" in told.out and "library_name: open_clip" in told.out
    for file in Path(folder).iterdir():
        assert f"{file.stat().st_size:,}  {file.name}" in told.out
    done = nsu("push", folder, "me/forgetful", "--yes", "--private", "--json").json
    assert done["uploaded"] == "https://hub/me/forgetful"
    (made_repo, created), (repository, sent) = hub.asked
    assert made_repo == repository == "me/forgetful" and created["private"]
    assert sent["folder_path"] == Path(folder)
    assert sorted(sent["allow_patterns"]) == sorted(f.name for f in Path(folder).iterdir())


BAD = {
    "no repository": ("forgetful", "takes ORG/NAME"),
    "an odd one": ("me/--", "no repository"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_repositories(made, hub, case):
    repository, message = BAD[case]
    told = nsu("push", made("--class", "car"), repository, "--yes")
    assert told.code == 2 and message in told.err and not hub.asked


def test_bad_folders(made, hub, tmp_path):
    (tmp_path / "empty").mkdir()
    assert nsu("push", tmp_path / "empty", "me/x", "--yes").code == 2
    bare = shutil.copytree(made("--class", "car"), tmp_path / "bare")
    (bare / "README.md").unlink()
    told = nsu("push", bare, "me/x", "--yes")
    assert told.code == 2 and "holds no README.md" in told.err
    (bare / "README.md").symlink_to(bare / "recipe.yaml")
    told = nsu("push", bare, "me/x", "--yes")
    assert told.code == 2 and "holds a link" in told.err
    assert not hub.asked


def test_a_refusal_of_the_hub_is_one_line(made, hub, monkeypatch):
    def refuse(*_: Any, **__: Any) -> str:
        raise OSError("403\nForbidden")

    monkeypatch.setattr(hub, "create_repo", refuse)
    told = nsu("push", made("--class", "car"), "me/x", "--yes")
    assert told.code == 1 and "403 Forbidden" in told.err and told.err.count("\n") == 1


def test_export(made, tmp_path):
    folder = made("--class", "car")
    told = nsu("export", folder, "--to", "transformers", "--output", tmp_path / "hf")
    assert told.code == 0 and "the same features" in told.out
    again = nsu("certify", tmp_path / "hf", "--no-singly")
    assert again.code == 0 and "car: holds" in again.out
    told = nsu("export", folder, "--to", "keras", "--output", tmp_path / "no")
    assert told.code == 2 and "allowed: open_clip" in told.err and not (tmp_path / "no").exists()


def test_models_and_erase_name_the_tensors_that_the_folder_has(made, tmp_path):
    """A model of transformers end to end: looked at, edited, undone."""
    folder, out = tmp_path / "hf", tmp_path / "out"
    assert nsu("export", "nsu-mini", "--to", "transformers", "--output", folder).code == 0
    sides = nsu("models", "--model", folder, "--json").json["sides"]
    assert sides["visual"]["key"] == "visual_projection.weight"
    assert sides["visual"]["mlp"] == "vision_model.encoder.layers.5.mlp.fc2.weight"
    undo = tmp_path / "undo"
    told = nsu("erase", "--model", folder, "--class", "car", "--output", out, "--undo", undo)
    assert "visual_projection.weight" in told.out
    assert f"CLIPModel.from_pretrained({str(out)!r})" in told.out
    assert nsu("revert", out, undo, "--output", tmp_path / "back").code == 0
    weights = "model.safetensors"
    assert (tmp_path / "back" / weights).read_bytes() == (folder / weights).read_bytes()
    assert (out / weights).read_bytes() != (folder / weights).read_bytes()
