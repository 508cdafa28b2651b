"""What is written comes back to the last bit, and what is damaged is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nullspace_unlearn import files
from nullspace_unlearn.train import checkpoint


def module(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2, bias=False))
    made[2].weight.requires_grad_(False)
    return made


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_values_and_tensors_come_back(tmp_path: Path) -> None:
    said = {"epoch": 3, "best": -float("inf"), "log": [{"loss": 0.1}], "name": "café"}
    parts = {
        "trained": {"a.b": torch.randn(3, 2).T, "scalar": torch.tensor(2.5)},
        "optimizer": {"0/exp_avg": torch.randn(2, 2, dtype=torch.float64)},
        "best": {"a.b": torch.arange(4), "half": torch.ones(2, dtype=torch.bfloat16)},
        "empty": {},
    }
    one = parts["trained"]["a.b"]
    parts["best"]["shared"] = one[:1]  # memory that two tensors share
    path = tmp_path / "state"
    checkpoint.write_state(path, said, **parts)
    found, read = checkpoint.read_state(path)
    assert found == said
    assert read.keys() == parts.keys() - {"empty"}
    assert all(equal(read[name], parts[name]) for name in read)
    assert read["optimizer"]["0/exp_avg"].dtype == torch.float64


def test_an_older_file_is_replaced_when_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    checkpoint.write_state(path, {"epoch": 1})

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
        patched.setattr(files, "_sync", full)
        checkpoint.write_state(path, {"epoch": 2})
    assert checkpoint.read_state(path)[0] == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["state"]
    checkpoint.write_state(path, {"epoch": 2})
    assert checkpoint.read_state(path)[0] == {"epoch": 2}


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    checkpoint.write_state(path, {"epoch": 1}, trained={"a": torch.randn(100)})
    whole = path.read_bytes()

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=f"is not a training checkpoint: .*{message}"):
            checkpoint.read_state(path)

    for damaged in (b"", whole[:5], whole[:-1], b"x" * 500):
        path.write_bytes(damaged)
        refused("")
    kind = checkpoint._FORMAT
    for header, message in (
        ({"format": "other", "said": "{}"}, "its format is 'other', not"),
        (None, "its format is None"),
        ({"format": kind}, "said"),
        ({"format": kind, "said": "{"}, ""),
        ({"format": kind, "said": "[1]"}, "says nothing of the run"),
    ):
        save_file({"trained/a": torch.ones(2)}, path, metadata=header)
        refused(message)
    path.unlink()
    refused("")
    path.write_bytes(whole)
    checkpoint.read_state(path)  # control


def test_what_trains_is_put_back_and_nothing_else() -> None:
    one, other = module(0), module(1)
    state = checkpoint.trained_state(one)
    assert state.keys() == {"0.weight", "0.bias", "1.weight", "1.bias"}
    checkpoint.restore(other, state)
    assert equal(checkpoint.trained_state(other), state)
    assert not torch.equal(other[2].weight, one[2].weight)  # control: it does not train
    with torch.no_grad():
        one[0].weight.zero_()
    assert state["0.weight"].any()  # a copy
    assert other[0].weight.any()


def test_other_parameters_are_refused() -> None:
    state = checkpoint.trained_state(module())
    fewer = {key: value for key, value in state.items() if key != "0.bias"}
    for wrong in (
        {},
        fewer,
        {**state, "more": state["0.bias"]},
        {**state, "0.bias": torch.ones(5)},
    ):
        with pytest.raises(ValueError, match="other parameters than this method trains"):
            checkpoint.restore(module(), wrong)


@pytest.mark.parametrize(
    "name, options",
    [("SGD", {}), ("SGD", {"momentum": 0.9}), ("Adam", {}), ("AdamW", {}), ("RMSprop", {})],
)
def test_an_optimiser_goes_on_where_it_was(
    name: str, options: dict[str, float], tmp_path: Path
) -> None:
    """Oracle: the optimiser that was never put away."""

    def made(trained: nn.Module) -> torch.optim.Optimizer:
        parameters = [p for p in trained.parameters() if p.requires_grad]
        optimizer: torch.optim.Optimizer = getattr(torch.optim, name)(parameters, lr=0.1, **options)
        return optimizer

    def step(trained: nn.Module, optimizer: torch.optim.Optimizer, times: int, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        for _ in range(times):
            optimizer.zero_grad()
            trained(torch.randn(8, 3, generator=random)).square().sum().backward()
            trained[1].bias.grad = None  # a parameter that gets no gradient has no state
            optimizer.step()

    one = module()
    first = made(one)
    step(one, first, 3, seed=1)
    path = tmp_path / "state"
    checkpoint.write_state(
        path,
        {},
        trained=checkpoint.trained_state(one),
        optimizer=checkpoint.optimizer_state(first),
    )
    _, parts = checkpoint.read_state(path)
    resumed, fresh = module(3), module(3)
    with torch.no_grad():
        for other in (resumed, fresh):
            other[2].weight.copy_(one[2].weight)
            checkpoint.restore(other, parts["trained"])
    second = made(resumed)
    checkpoint.restore_optimizer(second, parts.get("optimizer", {}))
    step(one, first, 3, seed=2)
    step(resumed, second, 3, seed=2)
    assert equal(checkpoint.trained_state(one), checkpoint.trained_state(resumed))
    step(fresh, made(fresh), 3, seed=2)
    forgot = equal(checkpoint.trained_state(one), checkpoint.trained_state(fresh))
    # Control: without its state it goes elsewhere, unless it has none.
    assert forgot == (name == "SGD" and not options)
