"""`Edit`: one identity for each thing it can do."""

from __future__ import annotations

import json
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import nullspace_unlearn.edit
from nullspace_unlearn.edit import DEEPER, Edit, Space
from nullspace_unlearn.files import OutputExists


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_edit(*batch: int, dim: int = 7, rank: int = 3, seed: int = 0) -> Edit:
    """Neither symmetric nor idempotent, and of full operator rank."""
    return Edit(
        read=randn(*batch, dim, rank, seed=seed) / 3,
        write=randn(*batch, dim, rank, seed=seed + 1) / 3,
        provenance={"method": "random", "seed": seed},
    )


def test_shapes_are_checked_in_tests() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        random_edit().apply(torch.ones(2, 7, dtype=torch.int64))


# Applying.


def test_applying_is_multiplying_by_the_operator() -> None:
    edit, z = random_edit(), randn(5, 7)
    assert torch.allclose(edit.apply(z), z @ edit.operator())
    assert not torch.allclose(edit.apply(z), z @ edit.operator().mT)  # not symmetric


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 8), st.integers(0, 100))
def test_applying_at_any_size(n: int, dim: int, rank: int, seed: int) -> None:
    edit, z = random_edit(dim=dim, rank=rank, seed=seed), randn(n, dim, seed=seed)
    assert torch.allclose(edit.apply(z), z @ edit.operator())


def test_the_transposed_edit_of_the_text_gives_the_same_scores() -> None:
    edit, z, t = random_edit(), randn(5, 7), randn(4, 7, seed=9)
    edited_text = t - (t @ edit.write) @ edit.read.T
    assert torch.allclose(edit.apply(z) @ t.T, z @ edited_text.T)
    assert not torch.allclose(edit.apply(z) @ t.T, z @ edit.apply(t).T)


def test_a_batch_of_edits_is_a_loop() -> None:
    batch, z = random_edit(2, 3), randn(5, 7)
    out = batch.apply(z)
    assert out.shape == (2, 3, 5, 7) and batch.batch_shape == (2, 3)
    for i in range(2):
        for j in range(3):
            assert torch.allclose(out[i, j], batch[i, j].apply(z))
            assert torch.allclose(batch.operator()[i, j], batch[i, j].operator())
    assert torch.equal(batch[1].read, batch.read[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_features_are_rounded_once_to_their_own_dtype(dtype: torch.dtype) -> None:
    edit, z = random_edit(), randn(5, 7).to(dtype)
    out = edit.apply(z)
    assert out.dtype == dtype
    assert torch.equal(out, edit.apply(z.double()).to(dtype))


@pytest.mark.parametrize("batch", [(), (2,)])
def test_many_rows_are_edited_block_by_block(
    batch: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    edit, z = random_edit(*batch), randn(3, 50, 7) if not batch else randn(50, 7)
    hidden = Edit(randn(11, 2, seed=2), randn(7, 2, seed=3), space="hidden")
    h = randn(50, 11, seed=4)
    whole, deep = edit.apply(z), hidden.apply(randn(50, 7), h)
    blocks: list[int] = []
    original = nullspace_unlearn.edit.subtracted

    def counted(features: Tensor, *rest: Tensor) -> Tensor:
        blocks.append(features.shape[-2])
        return original(features, *rest)

    monkeypatch.setattr("nullspace_unlearn.edit._BLOCK", 100)
    monkeypatch.setattr("nullspace_unlearn.edit.subtracted", counted)
    assert torch.allclose(edit.apply(z), whole) and len(blocks) > 2 and max(blocks) <= 14
    assert torch.allclose(hidden.apply(randn(50, 7), h), deep)


def test_numpy_arrays_give_numpy_arrays() -> None:
    edit, z = random_edit(), randn(5, 7)
    for dtype in (np.float16, np.float32, np.float64):
        rows = z.numpy().astype(dtype)
        rows.setflags(write=False)  # as those of a memory-mapped file
        out = edit.apply(rows)
        assert isinstance(out, np.ndarray) and out.dtype == dtype
        assert np.array_equal(out, edit.apply(torch.from_numpy(rows.copy())).numpy())
    with pytest.raises(ValueError, match="must be float16, float32 or float64, got int64"):
        edit.apply(np.ones((5, 7), np.int64))


def test_whole_numbers_are_no_features(unchecked) -> None:
    with unchecked(), pytest.raises(ValueError, match="must be floating-point numbers"):
        random_edit().apply(torch.ones(2, 7, dtype=torch.int64))


def test_a_hidden_edit_reads_the_hidden_feature() -> None:
    hidden, w = randn(5, 11), randn(11, 7, seed=1)
    edit = Edit(read=randn(11, 2, seed=2), write=randn(7, 2, seed=3), space="hidden")
    changed = w - edit.read @ edit.write.T
    assert torch.allclose(edit.apply(hidden @ w, hidden), hidden @ changed)
    with pytest.raises(ValueError, match="pass hidden"):
        edit.apply(hidden @ w)
    with pytest.raises(ValueError, match="has no operator"):
        edit.operator()
    with pytest.raises(ValueError, match="folding one after the other"):
        edit @ random_edit()
    with pytest.raises(ValueError, match="subtracting it from W"):
        edit.inverse()


@pytest.mark.parametrize("space", DEEPER)
def test_a_deeper_edit_takes_a_model_to_apply(space: Space) -> None:
    edit = Edit(read=randn(14, 2), write=randn(7, 2, seed=1), space=space)
    assert (edit.rank, edit.dim) == (2, 7)
    joint = random_edit()
    refused = {
        "fold it and embed the images again": lambda: edit.apply(randn(5, 7)),
        "has no operator: it does not read z": lambda: edit.operator(),
        "and one of 'embedding' compose by folding one": lambda: edit @ joint,
        "'embedding' and one of .* compose by folding": lambda: joint @ edit,
        "at strength -1": lambda: edit.inverse(),
    }
    for message, call in refused.items():
        with pytest.raises(ValueError, match=message):
            call()
    half = edit.scale(0.5)
    assert half.space == space and torch.equal(2 * half.read, edit.read)
    batch = Edit(read=randn(3, 14, 2), write=randn(3, 7, 2), space=space)
    assert batch[1].space == space and torch.equal(batch[1].read, batch.read[1])


# Scaling, composing, inverting.


def test_scaling() -> None:
    edit, z = random_edit(), randn(5, 7)
    assert torch.equal(edit.scale(0).apply(z), z)
    assert torch.equal(edit.scale(1).apply(z), edit.apply(z))
    assert torch.allclose(z - edit.scale(0.5).apply(z), (z - edit.apply(z)) / 2)
    for strength in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite"):
            edit.scale(strength)


def test_composing_applies_the_left_one_first() -> None:
    a, b, z = random_edit(seed=0), random_edit(seed=5, rank=2), randn(5, 7)
    assert torch.allclose((a @ b).apply(z), b.apply(a.apply(z)))
    assert not torch.allclose((a @ b).apply(z), a.apply(b.apply(z)))
    assert (a @ b).rank == 5
    assert [p["seed"] for p in (a @ b).provenance["composed"]] == [0, 5]


def test_edits_added_to_one_weight_add_up() -> None:
    hidden, w = randn(5, 11), randn(11, 7, seed=1)
    a, b = (
        Edit(read=randn(11, n, seed=n), write=randn(7, n, seed=n + 9), space="hidden")
        for n in (2, 3)
    )
    once, twice = (a @ b).apply(hidden @ w, hidden), b.apply(a.apply(hidden @ w, hidden), hidden)
    assert (a @ b).rank == 5 and torch.allclose(once, twice)
    assert not torch.allclose(once, a.apply(hidden @ w, hidden))  # control


def test_composing_batches() -> None:
    a, b, z = random_edit(2), random_edit(seed=5), randn(5, 7)
    for i in range(2):
        assert torch.allclose((a @ b)[i].apply(z), b.apply(a[i].apply(z)))
        assert torch.allclose((b @ a)[i].apply(z), a[i].apply(b.apply(z)))


def test_the_inverse_undoes() -> None:
    edit, z = random_edit(2), randn(5, 7)
    for i in range(2):
        one, back = edit[i], edit.inverse()[i]
        assert torch.allclose(back.apply(one.apply(z)), z)
        assert torch.allclose((one @ back).operator(), torch.eye(7, dtype=torch.float64))
        assert torch.allclose(back.operator(), torch.linalg.inv(one.operator()))


def test_what_was_removed_entirely_does_not_come_back() -> None:
    basis = torch.linalg.qr(randn(7, 2)).Q
    with pytest.raises(ValueError, match="removes a direction entirely"):
        Edit(read=basis, write=basis).inverse()
    dampened = Edit(read=0.9 * basis, write=basis)  # the same edit, not quite entire
    assert torch.allclose(
        (dampened @ dampened.inverse()).operator(), torch.eye(7, dtype=torch.float64)
    )


def test_a_batch_cannot_be_folded() -> None:
    class Model:
        def fold(self, edit: Edit, side: str = "visual") -> tuple[Edit, str]:
            return edit, side

    batch = random_edit(2)
    with pytest.raises(ValueError, match="index one"):
        batch.fold(Model())
    folded, side = batch[0].fold(Model(), "text")
    assert torch.equal(folded.read, batch.read[0]) and side == "text"


# What is refused.


@pytest.mark.parametrize(
    "read, write, space, message",
    [
        (randn(7, 3), randn(7, 2), "embedding", "rank"),
        (randn(8, 3), randn(7, 3), "embedding", "8 and 7 dimensions"),
        (randn(2, 7, 3), randn(7, 3), "embedding", "leading dimensions"),
        (randn(7), randn(7), "embedding", "matrices"),
        (randn(7, 3), randn(7, 3), "joined", "allowed: embedding, hidden, mlp, value"),
        (randn(7, 3) * float("nan"), randn(7, 3), "embedding", "NaN or Inf"),
        (randn(7, 3), randn(7, 3) / 0, "embedding", "NaN or Inf"),
    ],
)
def test_what_is_no_edit(unchecked, read: Tensor, write: Tensor, space: str, message: str) -> None:
    with unchecked(), pytest.raises(ValueError, match=message):
        Edit(read=read, write=write, space=space)  # type: ignore[arg-type]


def test_features_of_another_dimension_are_refused(unchecked) -> None:
    with unchecked(), pytest.raises(ValueError, match="reads 7 and writes 7 dimensions"):
        random_edit().apply(randn(5, 8))


# Saving.


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_saving_is_exact(tmp_path: Path, dtype: torch.dtype) -> None:
    made = random_edit(2)
    edit = Edit(made.read.to(dtype), made.write.to(dtype), provenance={"a": [1, None, "é"]})
    edit.save(tmp_path / "one.safetensors")
    back = Edit.load(tmp_path / "one.safetensors")
    assert back.read.dtype == dtype
    assert torch.equal(back.read, edit.read) and torch.equal(back.write, edit.write)
    assert back.space == edit.space and back.provenance == edit.provenance
    assert [p.name for p in tmp_path.iterdir()] == ["one.safetensors"]


def test_views_and_shared_matrices_are_saved(tmp_path: Path) -> None:
    basis = torch.linalg.qr(randn(7, 7)).Q[:, :2]
    Edit(read=basis, write=basis).save(tmp_path / "edit")
    assert torch.equal(Edit.load(tmp_path / "edit").write, basis)
    whole = basis.contiguous()
    Edit(read=whole, write=whole).save(tmp_path / "shared")
    assert torch.equal(Edit.load(tmp_path / "shared").read, basis)


@pytest.mark.parametrize("space", ["hidden", *DEEPER])
def test_an_edit_keeps_its_space(tmp_path: Path, space: Space) -> None:
    Edit(randn(9, 2), randn(7, 2), space=space).save(tmp_path / "edit")
    assert Edit.load(tmp_path / "edit").space == space


def test_an_existing_file_is_kept_unless_asked(tmp_path: Path) -> None:
    first, second, path = random_edit(seed=0), random_edit(seed=5), tmp_path / "edit"
    first.save(path)
    with pytest.raises(OutputExists):
        second.save(path)
    assert torch.equal(Edit.load(path).read, first.read)
    second.save(path, overwrite=True)
    assert torch.equal(Edit.load(path).read, second.read)


@pytest.mark.parametrize("damage", ["missing", "folder", "empty", "garbage", "truncated", "header"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "edit"
    random_edit().save(path)
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes(
            {
                "empty": b"",
                "garbage": bytes(range(256)) * 8,
                "truncated": whole[:-8],
                "header": whole[:40],
            }[damage]
        )
    with pytest.raises(ValueError, match="is not a saved edit"):
        Edit.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"format": None},
        {"format": "another 1"},
        {"space": None},
        {"space": "elsewhere"},
        {"provenance": None},
        {"provenance": "{"},
        {"provenance": "7"},
    ],
)
def test_a_foreign_file_is_refused(tmp_path: Path, change: dict[str, str | None]) -> None:
    header = {
        "format": "nullspace-unlearn edit 2",
        "space": "embedding",
        "provenance": json.dumps({}),
    }
    tensors = {"read": randn(7, 2), "write": randn(7, 2)}
    save_file(tensors, tmp_path / "good", metadata=header)
    assert Edit.load(tmp_path / "good").rank == 2
    changed = {k: v for k, v in {**header, **change}.items() if v is not None}
    save_file(tensors, tmp_path / "bad", metadata=changed)
    with pytest.raises(ValueError, match="is not a saved edit"):
        Edit.load(tmp_path / "bad")


@pytest.mark.parametrize("tensors", [{"read": randn(7, 2)}, {"read": randn(7, 2) / 0}])
def test_a_file_without_finite_matrices_is_refused(
    tmp_path: Path, tensors: dict[str, Tensor]
) -> None:
    header = {"format": "nullspace-unlearn edit 2", "space": "embedding", "provenance": "{}"}
    if not tensors["read"].isfinite().all():
        tensors = {**tensors, "write": randn(7, 2)}
    save_file(tensors, tmp_path / "edit", metadata=header)
    with pytest.raises(ValueError, match="is not a saved edit"):
        Edit.load(tmp_path / "edit")
