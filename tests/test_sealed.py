"""Sealed files: what is read is what was written, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from nullspace_unlearn.sealed import read_sealed, write_sealed


def test_back_come_the_same_tensors_and_note(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 2), "a": torch.arange(4), "none": torch.empty(0)}
    path = write_sealed(tmp_path, "7", tensors, "a note: 猫")
    read, note = read_sealed(path)
    assert note == "a note: 猫" and set(read) == set(tensors)
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    again = write_sealed(tmp_path, "7", dict(reversed(tensors.items())), "a note: 猫")
    assert again == path and [p.name for p in tmp_path.iterdir()] == [path.name]
    assert write_sealed(tmp_path, "7", tensors, "another") != path


def test_damage_anywhere_is_seen(tmp_path: Path) -> None:
    path = write_sealed(tmp_path, "7", {"x": torch.zeros(20)}, "note")
    whole = path.read_bytes()
    unseen = 0
    for place in range(len(whole)):
        changed = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        path.write_bytes(changed)
        with pytest.raises(ValueError, match="is damaged"):
            read_sealed(path)
        try:  # control: most of it is well-formed, so nothing but the hash shows it
            unseen += load(changed)["x"].shape == (20,)
        except Exception:
            continue
    assert unseen >= 80
    for length in (0, 7, 8, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is damaged"):
            read_sealed(path)
    path.write_bytes(whole)
    read_sealed(path)
    with pytest.raises(ValueError, match="is damaged"):
        read_sealed(path.rename(tmp_path / "x.safetensors"))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    import hashlib

    for data in (b"", b"hello", (2).to_bytes(8, "little") + b"[]", bytes(100)):
        path = tmp_path / f"7-{hashlib.sha256(data).hexdigest()}.safetensors"
        path.write_bytes(data)
        with pytest.raises(ValueError, match="is not a safetensors file") as error:
            read_sealed(path)
        assert "\n" not in str(error.value)
