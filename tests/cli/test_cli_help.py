"""Help in sections, what the shell completes, and what `nsu doctor` says."""

from __future__ import annotations

import json
import os
import re
import shutil
from importlib import metadata
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from shell import nsu

from nullspace_unlearn.cli import nsu as group
from nullspace_unlearn.cli.completion import closed_methods
from nullspace_unlearn.cli.sections import SECTIONS
from nullspace_unlearn.data import mini
from nullspace_unlearn.erasers import METHODS
from nullspace_unlearn.trained import listed

LEAVES = {
    name: command
    for name, command in group.commands.items()
    if not isinstance(command, click.Group)
}


def completed(*words: str) -> set[str]:
    *before, last = words
    return {one.value for one in ShellComplete(group, {}, "nsu", "_").get_completions(before, last)}


@pytest.mark.parametrize("name", LEAVES)
def test_every_option_stands_in_the_help_once(name: str) -> None:
    shown = nsu(name, "--help").out
    rows = re.findall(r"^  (-[\w-]+)(?:,| [ A-Z\[/]|$)", shown, re.MULTILINE)
    own = [one.opts[0] for one in LEAVES[name].params if isinstance(one, click.Option)]
    assert sorted(rows) == sorted([*own, "-h"])


def test_many_options_are_in_sections_and_defaults_are_shown() -> None:
    shown = nsu("erase", "--help").out
    heads = [line for line in shown.splitlines() if line.endswith(":") and line[0] != " "]
    assert heads == [*(f"{title}:" for title in SECTIONS), "Options:"]
    assert "[default: nsu-mini]" in shown and "[default: 1.0]" in shown
    few = nsu("revert", "--help").out  # the control: few options need none
    assert "Options:" in few and not any(f"{title}:" in few for title in SECTIONS)


def test_sections_name_options_that_there_are() -> None:
    known = {one.name for command in LEAVES.values() for one in command.params}
    assert {name for names in SECTIONS.values() for name in names} <= known


def test_the_shell_completes_commands_models_methods_and_classes(tmp_path: Path) -> None:
    assert completed("e") == {"erase", "embed", "evaluate", "export"} & set(group.commands)
    assert completed("erase", "--model", "ViT-B-32-qu") >= {"ViT-B-32-quickgelu"}
    assert "nsu-mini" in completed("inspect", "--model", "nsu")
    assert completed("erase", "--class", "ca") == {"car", "cat"}
    assert completed("erase", "--domain", "s") == {"sketch"}
    assert completed("erase", "--method", "n") == {"neutral", "nullspace"}
    assert completed("train", "a") == {name for name in listed() if name.startswith("a")}
    own = shutil.copytree(mini.MODEL_FOLDER, tmp_path / "own")
    said = json.loads((own / "vocabulary.json").read_text())
    (own / "vocabulary.json").write_text(json.dumps({**said, "classes": ["caravel"]}))
    assert completed("erase", "--model", str(own), "--class", "ca") == {"caravel"}
    assert completed("erase", "--model", "no such", "--class", "ca") == set()


def test_methods_are_known_without_importing_them() -> None:
    assert set(closed_methods()) == set(METHODS)


def test_the_doctor_says_what_there_is_and_what_can_be_edited() -> None:
    said = nsu("doctor", "--json").json
    assert said["wrong"] == [] and said["packages"]["torch"] == metadata.version("torch")
    assert said["devices"][-1].startswith("cpu: ")
    assert "can be edited: visual.proj" in said["edits"]["visual"]
    shown = nsu("doctor").out
    assert "edits     visual: can be edited" in shown and "Nothing that every command" in shown
    assert str(Path.home()) not in shown


def test_the_doctor_finds_what_is_missing_or_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    there = metadata.version
    versions = {"numpy": "1.0", "matplotlib": None, "pyarrow": "1.0", "wn": None}

    def version(name: str) -> str:
        if name in versions and versions[name] is None:
            raise metadata.PackageNotFoundError(name)
        return versions.get(name) or there(name)

    monkeypatch.setattr(metadata, "version", version)
    result = nsu("doctor", "--json")
    assert result.code == 1 and result.json["wrong"] == ["numpy 1.0 is too old: >=1.24"]
    missing = result.json["extras_missing"]
    assert missing["report"][0].startswith("matplotlib is missing") and "hf" not in missing
    assert missing["wordnet"][0].startswith("wn is missing") and not {"dev", "test"} & set(missing)
    assert "edits" not in result.json  # it asks nothing of what may not import
    versions.pop("numpy")
    assert nsu("doctor", "--json").code == 0  # the control: an extra may be missing


def test_idle_threads_wait_quietly_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert nsu("--version").code == 0 and os.environ["OMP_WAIT_POLICY"] == "active"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert nsu("--version").code == 0 and os.environ["OMP_WAIT_POLICY"] == "passive"
