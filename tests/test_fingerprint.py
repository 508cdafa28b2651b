"""Facts, their hash and their differences; our own code; contents of files without reading them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from nullspace_unlearn import fingerprint
from nullspace_unlearn.fingerprint import (
    Contents,
    Fingerprint,
    code_of,
    contents_in_use,
    kept_contents,
    machine,
    of_tensors,
)

FACTS: dict[str, Any] = {
    "weights": "0" * 64,
    "preprocessing": {"mean": [0.5, 0.25], "size": [32, 32]},
    "adapter": None,
}


@dataclass
class Numbers:
    steps: int = 3


def test_how_facts_are_written_does_not_count() -> None:
    one = Fingerprint(FACTS)
    assert one == Fingerprint(dict(reversed(FACTS.items()))) and hash(one) == hash(
        Fingerprint(FACTS)
    )
    tuples = {"size": (32, 32), "mean": (0.5, 0.25)}
    assert one.digest == Fingerprint({**FACTS, "preprocessing": tuples}).digest
    assert one.digest == Fingerprint(json.loads(json.dumps(dict(one.facts)))).digest  # read back
    assert Fingerprint({"model": one}) == Fingerprint({"model": FACTS})
    assert Fingerprint({"numbers": Numbers()}) == Fingerprint({"numbers": {"steps": 3}})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"weights": "1" * 64}, f"weights: {'0' * 12}, now {'1' * 12}"),
        ({"adapter": "a"}, "adapter: null, now a"),
        (
            {"preprocessing": {"mean": [0.5, 0.125], "size": [32, 32]}},
            "preprocessing.mean: [0.5, 0.25], now [0.5, 0.125]",
        ),
        ({"preprocessing": {"size": [32, 32]}}, "preprocessing.mean: [0.5, 0.25], now absent"),
        ({"edits": {}}, "edits: absent, now {}"),
        ({"words": ["x" * 99]}, 'words: absent, now ["' + "x" * 55 + "..."),
    ],
)
def test_a_difference_is_worded(changed: dict[str, Any], said: str) -> None:
    one, other = Fingerprint(FACTS), Fingerprint({**FACTS, **changed})
    assert one.differences(other) == [said]
    assert one != other and one.digest != other.digest
    assert one.differences(Fingerprint(FACTS)) == []  # control
    assert one.only("weights", "none").facts == {"weights": "0" * 64}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, Path("a"), Numbers])
def test_what_is_no_plain_value_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="facts must be plain values"):
        Fingerprint({"fact": [value]})


def test_tensors_are_told_apart_by_all_that_they_are() -> None:
    value = torch.arange(6.0).reshape(2, 3)
    some = {"a": value, "b": None}
    others = [
        {"b": value},
        {"a": value.double()},
        {"a": value.reshape(3, 2)},
        {"a": value.mT.contiguous()},
        {"a": value + torch.tensor(2**-20)},
        {"a": value, "b": value},
    ]
    digests = {of_tensors(other) for other in others}
    assert len(digests) == len(others) and of_tensors(some) not in digests
    # Layout in memory is no part of a tensor.
    assert of_tensors({"a": value.mT.contiguous().mT}) == of_tensors(some)
    assert of_tensors({"a": torch.ones(3, dtype=torch.bfloat16), "e": torch.empty(0, 2)[:, 0]})


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package's source."""
    ours = Path(fingerprint.__file__).parent
    shutil.copytree(ours, tmp_path / "ours", ignore=shutil.ignore_patterns("__pycache__", "model"))
    monkeypatch.setattr(fingerprint, "_PACKAGE", tmp_path / "ours")
    fingerprint._source.cache_clear()
    yield tmp_path / "ours"
    fingerprint._source.cache_clear()


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("prototypes/text_cache.py", True),
        ("clip/prompts.py", True),  # by way of clip/model.py
        ("words.py", True),
        ("report/plots.py", False),
        ("cli/bench.py", False),
    ],
)
def test_code_counts_where_a_result_goes_through_it(package: Path, file: str, counts: bool) -> None:
    before = code_of("prototypes.text_cache")
    with (package / file).open("a") as source:
        source.write("\n# changed\n")
    assert code_of("prototypes.text_cache") == before  # within one process code stays as it is
    fingerprint._source.cache_clear()
    assert (code_of("prototypes.text_cache") != before) == counts


def test_code_takes_in_all_that_is_imported() -> None:
    """The oracle is Python, which says what it has imported."""
    program = (
        "import sys, nullspace_unlearn.train.loop\n"
        "print(*(m for m in sys.modules if m.startswith('nullspace_unlearn.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    imported = {name.removeprefix("nullspace_unlearn.") for name in done.stdout.split()}
    followed, waiting = set(), ["train.loop"]
    while waiting:
        file = fingerprint._file_of(name := waiting.pop())
        if file is not None and name not in followed:
            followed.add(name)
            waiting += fingerprint._mentioned(file.read_text())
    assert "train.loop" in imported and imported <= followed
    assert "cli" not in followed  # control
    with pytest.raises(ValueError, match="no module 'train.none'"):
        code_of("train.none")


def test_the_machine_names_its_libraries() -> None:
    assert machine("cpu")["torch"] == torch.__version__.partition("+")[0]
    assert machine(torch.device("cuda", 1))["device"] == "cuda" != machine("cpu")["device"]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read to be hashed."""
    read: list[Path] = []
    original = fingerprint.file_sha256

    def counted(path: Path) -> str:
        read.append(path)
        return original(path)

    monkeypatch.setattr(fingerprint, "file_sha256", counted)
    return read


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    made = [folder / "a", folder / "deep" / "b", folder / "c"]
    for file in made:
        file.write_bytes(file.name.encode() * 9)
    return made


def hashes(files: list[Path]) -> list[str]:
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def test_a_file_that_stayed_is_not_read_again(
    files: list[Path], tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = files[0].parent
    assert Contents(tmp_path).of(root, files) == hashes(files) and len(reads) == 3
    # Just written, it may be written again before the clock ticks: nothing is kept of it.
    assert Contents(tmp_path).of(root, files) == hashes(files) and len(reads) == 6
    monkeypatch.setattr(fingerprint, "_TICK_NS", 0)
    time.sleep(0.02)
    contents = Contents(tmp_path)
    assert contents.of(root, [*files, files[0]]) == hashes([*files, files[0]]) and len(reads) == 9
    assert contents.of(root, files) == hashes(files) and len(reads) == 9
    assert Contents(tmp_path).of(root, files) == hashes(files) and len(reads) == 9
    assert Contents().of(root, files) == hashes(files) and len(reads) == 12  # control
    (kept,) = (tmp_path / "contents").iterdir()
    for broken in ("", "[]", "{}", kept.read_text().replace("contents 1", "contents 0")):
        kept.write_text(broken)
        assert Contents(tmp_path).of(root, files) == hashes(files)
    assert len(reads) == 24


@pytest.mark.parametrize("how", ["other size", "same size", "same time", "another file"])
def test_a_file_that_changed_is_read_again(
    how: str, files: list[Path], tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "_TICK_NS", 0)
    root, file = files[0].parent, files[1]
    time.sleep(0.02)
    contents = Contents(tmp_path)
    before = contents.of(root, files)
    reads.clear()
    time.sleep(0.02)
    stat, new = file.stat(), b"x" * (10 if how == "other size" else 9)
    if how == "another file":
        other = root / "other"
        other.write_bytes(new)
        os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        other.replace(file)
    else:
        file.write_bytes(new)
    if how == "same time":
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert file.stat().st_mtime_ns == stat.st_mtime_ns
    for again in (contents, Contents(tmp_path)):
        after = again.of(root, files)
        assert after == hashes(files) != before
        assert [one == two for one, two in zip(before, after, strict=True)] == [True, False, True]
    assert set(reads) == {file}


def test_contents_are_kept_while_a_block_lasts(tmp_path: Path) -> None:
    with kept_contents(tmp_path) as outer:
        assert contents_in_use() is outer and outer.folder == tmp_path / "contents"
        with kept_contents() as inner:
            assert contents_in_use() is inner
        assert contents_in_use() is outer
    assert contents_in_use().folder is None


def test_a_folder_that_cannot_be_written_costs_time_alone(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "_TICK_NS", 0)
    time.sleep(0.02)
    (tmp_path / "contents").write_text("no folder")
    assert Contents(tmp_path).of(files[0].parent, files) == hashes(files)
