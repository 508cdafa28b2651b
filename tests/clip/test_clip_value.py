"""An edit of the value projection: what it does to z is linear. Oracles: numpy, torch, stock."""

from __future__ import annotations

import copy
import filecmp
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pico
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from nullspace_unlearn.clip import (
    FAMILIES,
    Clip,
    ValueProjection,
    describe,
    find_value,
    load,
    revert,
    value,
)
from nullspace_unlearn.edit import Edit
from nullspace_unlearn.evaluate.compare import compared, predicted
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.inspection import inspection
from nullspace_unlearn.plans import plan, space_for
from nullspace_unlearn.prototypes import class_prototypes, from_batches
from nullspace_unlearn.unlearn import erase

SHARED = Path(__file__).parents[3] / "shared" / "models"
WEIGHTS = "open_clip_model.safetensors"
KEY = "visual.attnpool.v_proj.weight"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Clip:
    """A ModifiedResNet of two heads, both of which write less than the joint space."""
    root = tmp_path_factory.mktemp("value")
    config = pico.config("RN50", root / "text")
    config["model_cfg"]["vision_cfg"].update(width=8, head_width=128)
    config["model_cfg"]["embed_dim"] = 160
    config["model_cfg"]["text_cfg"].update(width=8)
    (root / "open_clip_config.json").write_text(json.dumps(config))
    state = pico.build(root).state_dict()
    save_file({key: kept.contiguous().clone() for key, kept in state.items()}, root / WEIGHTS)
    return load(str(root), device="cpu")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def edit_of(found: ValueProjection, seed: int = 0, rank: int = 3) -> Edit:
    source, wide = found.sizes
    read, write = randn(source, rank, seed=seed) / source**0.5, randn(wide, rank, seed=seed + 100)
    return Edit(read, write / 4, space="value", provenance={"method": "random", "seed": seed})


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def by_hand(clip: Clip, edit: Edit) -> tuple[np.ndarray, np.ndarray]:
    """Oracle: v and z' head by head in numpy, from what enters the pool in stock's own pass."""
    model = copy.deepcopy(clip.model).double()
    pool, seen = model.visual.attnpool, {}
    pool.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0].detach().numpy()))
    with torch.no_grad():
        model.encode_image(pico.images().double())
    weights = {key: value.detach().numpy() for key, value in pool.named_parameters()}
    heads, (n, embed) = pool.num_heads, seen["x"].shape[:2]
    size = embed // heads
    source, out = np.zeros((n, heads, embed)), np.zeros((n, embed))
    for i in range(n):
        x = seen["x"][i].reshape(embed, -1).T
        x = np.concatenate([x.mean(0, keepdims=True), x]) + weights["positional_embedding"]
        for h in range(heads):
            own = slice(h * size, (h + 1) * size)
            q = x[0] @ weights["q_proj.weight"][own].T + weights["q_proj.bias"][own]
            k = x @ weights["k_proj.weight"][own].T + weights["k_proj.bias"][own]
            a = np.exp(k @ q / np.sqrt(size))
            v = (a / a.sum()) @ x
            read = edit.read.numpy()[h * embed : (h + 1) * embed]
            u = weights["v_proj.weight"][own] @ v + weights["v_proj.bias"][own]
            out[i, own] = u - edit.write.numpy()[own] @ (read.T @ v)
            source[i, h] = v
    z = out @ weights["c_proj.weight"].T + weights["c_proj.bias"]
    return source.reshape(n, -1), z


def test_folding_changes_each_head_by_what_it_reads(clip: Clip) -> None:
    found = find_value(clip.model)
    assert found.heads == 2 and found.key == KEY == describe(clip.model)["visual"]["value"]
    edit, plain = edit_of(found), clip.encode_image(pico.images())
    rows, expected = map(torch.from_numpy, by_hand(clip, edit))
    before = {key: kept.clone() for key, kept in clip.model.state_dict().items()}

    folded = clip.fold(edit)

    assert distance(folded.encode_image(pico.images()), expected) < 1e-5
    seen = clip.read_inner("value", pico.images())
    assert distance(seen.rows, rows) < 1e-5
    assert distance(found.apply(edit, seen), expected) < 1e-5
    assert distance(found.apply(edit, found.of_prototypes(seen.rows, seen.hidden)), expected) < 1e-5
    assert torch.equal(seen.hidden, clip.hidden_image(pico.images()))
    # Controls: no edit, its opposite, and each head reading the other's rows would be noticed.
    assert distance(plain, expected) > 0.05
    swapped = seen.rows.unflatten(1, (2, -1)).flip(1).flatten(1)
    assert distance(found.apply(edit, found.of_prototypes(swapped, seen.hidden)), expected) > 1e-4
    # What attention is made of, every other tensor and the original are as they were.
    again = folded.read_inner("value", pico.images())
    assert torch.equal(again.rows, seen.rows) and not torch.equal(again.hidden, seen.hidden)
    assert [change.key for change in folded.changes] == [KEY]
    for key, kept in folded.model.state_dict().items():
        assert key == KEY or kept.data_ptr() == clip.model.state_dict()[key].data_ptr()
    assert all(torch.equal(kept, before[key]) for key, kept in clip.model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in clip._headless.modules())


def test_each_head_writes_where_it_leads(clip: Clip) -> None:
    """Oracle: the normal equations of each head's least shift, solved densely."""
    found = find_value(clip.model)
    bases, columns = found.bases(), found._columns()
    heads, size, dim = columns.shape
    assert size < dim  # a head cannot write everywhere
    eye = torch.eye(size, dtype=torch.float64)
    for base, column in zip(bases, columns, strict=True):
        assert distance(base.T @ base, eye) < 1e-10
        assert distance(base @ (base.T @ column.T), column.T) < 1e-10
    wanted = bases @ randn(heads, size, 2)
    carried = found.carry_back(wanted.flatten(0, 1))
    blocks = carried.unflatten(0, (heads, -1))
    assert distance(columns.mT @ blocks, wanted) < 1e-8
    least = columns @ torch.linalg.lstsq(columns.mT @ columns, wanted, driver="gelsd").solution
    assert distance(blocks, least) < 1e-6
    anywhere = randn(heads * dim, 2, seed=1)  # control: outside there is nothing to carry
    blocks = found.carry_back(anywhere).unflatten(0, (heads, -1))
    assert distance((columns.mT @ blocks).flatten(0, 1), anywhere) > 0.1
    both = found.carry_back(torch.stack([anywhere, 2 * anywhere]))
    assert distance(both[1], 2 * found.carry_back(anywhere)) < 1e-12
    with pytest.raises(ValueError, match="write has 7 rows; 2 heads write 160 dimensions"):
        found.carry_back(randn(7, 2))


def test_batches_and_compositions(clip: Clip, random_edit) -> None:
    found, seen = find_value(clip.model), clip.read_inner("value", pico.images())
    one, two = edit_of(found, seed=1), edit_of(found, seed=2)
    both = Edit(
        torch.stack([one.read, two.read]), torch.stack([one.write, two.write]), space="value"
    )
    out = found.apply(both, seen)
    assert distance(out[1], found.apply(two, seen)) < 1e-12 and distance(out[0], out[1]) > 0.01
    twice = found.apply(one, seen) + found.apply(two, seen) - seen.embedding
    assert distance(clip.fold(one).fold(two).encode_image(pico.images()), twice) < 1e-5
    joint = random_edit(clip.dim)
    first = clip.fold(one).fold(joint).encode_image(pico.images())
    assert distance(first, clip.fold(joint).fold(one).encode_image(pico.images())) < 1e-5
    assert distance(first, clip.fold(joint).encode_image(pico.images())) > 0.01  # control
    back = clip.fold(one).fold(one.scale(-1)).encode_image(pico.images())
    assert distance(back, clip.encode_image(pico.images())) < 1e-5
    # Each head's update by itself; of the stacked matrices' product it would be another.
    read, write = (part.unflatten(0, (2, -1)) for part in (one.read, one.write))
    sizes = torch.cat([torch.linalg.svdvals(r @ w.T)[:3] for r, w in zip(read, write, strict=True)])
    assert distance(one.spectrum(), sizes.sort(descending=True).values[:3]) < 1e-10
    assert distance(one.spectrum(), torch.linalg.svdvals(one.read @ one.write.T)[:3]) > 0.05


def test_wrong_attention_is_noticed(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folding compares with what the tower computes, so a pool read wrongly is refused."""
    edit = edit_of(find_value(clip.model))
    right = value.ValueProjection.read

    def wrong(self, model, images):
        seen = right(self, model, images)
        return value.ValueFeatures(seen.rows.roll(1, 0), seen.hidden, seen.embedding)

    monkeypatch.setattr(value.ValueProjection, "read", wrong)
    with pytest.raises(RuntimeError, match="folding into visual.attnpool.v_proj.weight did not do"):
        clip.fold(edit)


def test_what_does_not_fit_is_refused(clip: Clip, clip_of) -> None:
    found = find_value(clip.model)
    with pytest.raises(ValueError, match="the edit reads 3 and writes 4 dimensions, and visual"):
        clip.fold(Edit(randn(3, 1), randn(4, 1), space="value"))
    with pytest.raises(ValueError, match="the edit's space is 'hidden'; the value projection"):
        found.check_fits(Edit(randn(3, 1), randn(4, 1), space="hidden"))
    with pytest.raises(ValueError, match="space 'value' is the visual tower's; fold it on side"):
        clip.fold(edit_of(found), "text")


@pytest.mark.parametrize("name", ["ViT-B-32", "convnext_base", "ViT-B-16-SigLIP"])
def test_a_request_for_what_there_is_not_says_what_there_is(name, clip_of, clip: Clip) -> None:
    told = {"classes": ("ox", "emu"), "domains": {"photo": "photo", "sketch": "sketch"}}
    other = clip_of(name)
    made = plan(other, Forget(["ox"], ["photo"]), images=True, **told)
    has = ", ".join(other.spaces)
    with pytest.raises(ValueError, match=f"end in an attention pool.*--space may be {has}$"):
        space_for(other, made, "value")
    assert describe(other.model)["visual"]["value"] is None
    assert space_for(other, made) == next(s for s in ("mlp", "hidden") if s in other.spaces)
    own = plan(clip, Forget(["ox"], ["photo"]), images=True, **told)
    assert space_for(clip, own) == space_for(clip, own, "value") == "value"  # control


def test_an_erasure_reads_heads_by_default(clip: Clip) -> None:
    """From images of every cell to the folded model: prediction, inspection, what was read."""
    classes, domains = ("ox", "emu", "cat"), {"photo": "photo", "sketch": "sketch"}
    grid = torch.ones(3, 2).nonzero().repeat_interleave(3, 0)
    images = randn(18, 3, 32, 32, seed=3).float() + grid.sum(1)[:, None, None, None]
    given = (grid[:, 0], grid[:, 1], classes, tuple(domains))
    made = plan(clip, Forget(domains=["sketch"]), classes=classes, domains=domains, images=True)
    visual = from_batches(clip, [images], *given, space=space_for(clip, made))
    edit = erase(clip, made, visual=visual)
    assert edit.space == "value" and edit.provenance["method"] == "neutral"
    edited = clip.fold(edit)
    told = predicted(clip, edited, edit, "visual", made.forget, made.words, visual)
    again = from_batches(edited, [images], *given)
    text = class_prototypes(clip, classes, made.words.class_templates)
    mask = made.forget.mask(classes, tuple(domains))
    shown = ((v.features.embeddings, text.float()) for v in (visual, again))
    exact = compared(visual.features, mask, *shown)
    assert told.figures["after"] == pytest.approx(exact.figures["after"], abs=1e-5, nan_ok=True)
    assert told.figures["after"] != told.figures["before"]  # control
    said = inspection(clip, made, edit, visual, 3)
    moved = again.features.embeddings - visual.features.embeddings
    share = moved.norm(dim=1) / visual.features.embeddings.norm(dim=1)
    assert said["change_of_forgotten"] == pytest.approx(float(share[grid[:, 1] == 1].mean()), 1e-3)
    kept = float(share[grid[:, 1] == 0].mean())
    assert said["mean_change_of_kept"] == pytest.approx(kept, 1e-3)
    assert kept != pytest.approx(said["change_of_forgotten"], 1e-2)  # control
    with pytest.raises(ValueError, match="made without the value feature"):
        erase(clip, made, visual=again)


def test_saved_for_stock_and_reverted_bit_by_bit(clip: Clip, tmp_path: Path) -> None:
    """Oracle: stock open_clip in a process that cannot import this package."""
    folded = clip.fold(edit_of(find_value(clip.model)))
    folded.save(tmp_path / "out", undo=tmp_path / "undo")
    np.save(tmp_path / "images.npy", pico.images().numpy())
    code = (
        "import sys; sys.modules['nullspace_unlearn'] = None\n"
        "import numpy, open_clip, torch\n"
        f"model = open_clip.create_model('local-dir:{tmp_path / 'out'}').eval()\n"
        f"images = torch.from_numpy(numpy.load(r'{tmp_path / 'images.npy'}'))\n"
        "with torch.no_grad(): z = model.encode_image(images)\n"
        f"numpy.save(r'{tmp_path / 'z.npy'}', z.numpy())"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
    stock = torch.from_numpy(np.load(tmp_path / "z.npy"))
    assert distance(stock, folded.encode_image(pico.images())) < 1e-6
    assert distance(stock, clip.encode_image(pico.images())) > 0.05  # control
    back = revert(tmp_path / "out", tmp_path / "undo", tmp_path / "back")
    assert clip.source.weights is not None
    assert filecmp.cmp(back / WEIGHTS, clip.source.weights, shallow=False)
    assert not filecmp.cmp(tmp_path / "out" / WEIGHTS, clip.source.weights, shallow=False)


def test_a_trained_model_in_half_precision() -> None:
    if not (SHARED / "clip-rn-pacs").is_dir():
        pytest.skip("the shared models are not here")
    clip = load(str(SHARED / "clip-rn-pacs"), device="cpu")
    found, images = find_value(clip.model), torch.randn(2, 3, *clip.image_size)
    assert (found.heads, found.sizes) == (16, (16384, 1024))
    edit, seen = edit_of(found), clip.read_inner("value", images)
    after = clip.fold(edit).encode_image(images)
    assert distance(after, found.apply(edit, seen)) < 5e-3
    assert distance(after, seen.embedding) > 0.01  # control


@pytest.mark.slow
@pytest.mark.parametrize("name, heads", [("RN50", 32), ("RN101-quickgelu", 32), ("RN50x64", 64)])
def test_full_size_configurations(name: str, heads: int) -> None:
    with torch.device("meta"):
        config = open_clip.get_model_config(name)
        found = find_value(open_clip.CLIP(**config))
    assert found.key == KEY and found.heads == heads


def test_the_parts_of_a_pool_are_there() -> None:
    """Oracle: the class itself; a rename in the library must be noticed here."""
    pools = [family.pool for family in FAMILIES if family.pool]
    assert len(pools) == 1
    built = open_clip.modified_resnet.AttentionPool2d(2, 8, 2, 4)
    assert type(built).__name__ == pools[0].kind
    for part in (pools[0].query, pools[0].key, pools[0].value):
        assert isinstance(built.get_submodule(part), torch.nn.Linear)
    assert getattr(built, pools[0].positions).shape == (5, 8)
