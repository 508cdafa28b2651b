"""What a run of training needs to go on where it stopped, in safetensors files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from nullspace_unlearn.files import check_regular, new_file

_FORMAT = "nullspace-unlearn training 1"

State = dict[str, Tensor]


def write_state(path: Path, said: Mapping[str, Any], **parts: State) -> None:
    """Write tensors and plain values to one file, which replaces an older one when it is whole.

    Args:
        path: The file.
        said: Plain JSON values.
        **parts: Tensors by name, in groups.
    """
    tensors = {
        f"{part}/{name}": value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for part, state in parts.items()
        for name, value in state.items()
    }
    header = {"format": _FORMAT, "said": json.dumps(dict(said))}
    with new_file(path, overwrite=True) as temporary:
        save_file(tensors, temporary, metadata=header)


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, State]]:
    """Read back what `write_state` wrote.

    Args:
        path: The file.

    Returns:
        The plain values, and the groups of tensors.

    Raises:
        ValueError: If the file is damaged, or not such a file.
    """
    parts: dict[str, State] = {}
    try:
        check_regular(Path(path))
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != _FORMAT:
                raise ValueError(f"its format is {header.get('format')!r}, not {_FORMAT!r}")
            said = json.loads(header["said"])
            if not isinstance(said, dict):
                raise ValueError("it says nothing of the run")
            for key in file.keys():
                part, _, name = key.partition("/")
                parts.setdefault(part, {})[name] = file.get_tensor(key)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a training checkpoint: {error}") from None
    return said, parts


def trained_state(module: nn.Module) -> State:
    """A copy, on the CPU, of the parameters of a module that train, by name."""
    return {
        name: value.detach().to("cpu", copy=True)
        for name, value in module.named_parameters()
        if value.requires_grad
    }


def restore(module: nn.Module, state: State) -> None:
    """Put trained parameters back.

    Args:
        module: The module, changed in place.
        state: From `trained_state` of such a module.

    Raises:
        ValueError: If names or shapes differ.
    """
    own = {name: value for name, value in module.named_parameters() if value.requires_grad}
    shapes = {name: tuple(value.shape) for name, value in own.items()}
    if shapes != {name: tuple(value.shape) for name, value in state.items()}:
        raise ValueError("the checkpoint holds other parameters than this method trains")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name])


def optimizer_state(optimizer: torch.optim.Optimizer) -> State:
    """The tensors an optimiser keeps, by parameter and name."""
    return {
        f"{index}/{name}": value
        for index, held in optimizer.state_dict()["state"].items()
        for name, value in held.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, state: State) -> None:
    """Put back what `optimizer_state` gave, into an optimiser of the same parameters."""
    held: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        index, _, name = key.partition("/")
        held.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(
        {"state": held, "param_groups": optimizer.state_dict()["param_groups"]}
    )
