"""Which trained methods there are, and what each says of itself, known without importing torch.

A method is one file of `train/` and one line here.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

HOMES = (
    "nullspace_unlearn.train.adu:Adu",
    "nullspace_unlearn.train.subgroup:Subgroup",
    "nullspace_unlearn.train.cliperase:ClipErase",
    "nullspace_unlearn.train.salun:SalUn",
    "nullspace_unlearn.train.lipschitz:Lipschitz",
    "nullspace_unlearn.train.adaptation:SpaceAdaptation",
    "nullspace_unlearn.train.plain:Ascent",
    "nullspace_unlearn.train.plain:MemoriseForget",
    "nullspace_unlearn.train.plain:Finetune",
)
"""Where each is to be found."""


@dataclass(frozen=True)
class Listed:
    """What a trained method says of itself.

    Attributes:
        name: What the command line calls it.
        paper: Where it comes from.
        adapter: Whether it trains visual prompts and leaves the weights alone.
    """

    name: str
    paper: str
    adapter: bool = False


@cache
def listed() -> dict[str, Listed]:
    """Every trained method by its name: its class attributes, read as text."""
    found = [_read(home) for home in HOMES]
    return {one.name: one for one in found}


def _read(home: str) -> Listed:
    module, _, name = home.partition(":")
    file = Path(__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    own = next(one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == name)
    said: dict[str, Any] = {
        line.target.id: line.value.value
        for line in own.body
        if isinstance(line, ast.AnnAssign)
        and isinstance(line.target, ast.Name)
        and isinstance(line.value, ast.Constant)
    }
    return Listed(said["name"], said["paper"], said.get("adapter", False))
