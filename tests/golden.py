"""Numbers that are to change only on purpose: `python tests/golden.py` writes them to golden.json.

Constants of the mathematics, the defaults of every method, what each eraser makes of a small fixed
problem, and the bundled pictures. A test elsewhere says what is true of an edit; this one says that
it is still the same edit. Look at the difference before you write it anew.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nullspace_unlearn import erasers, linalg, prototypes, train
from nullspace_unlearn.data import mini
from nullspace_unlearn.edit import Edit
from nullspace_unlearn.erasers.method import Given, Seen

FILE = Path(__file__).with_name("golden.json")
_CLASSES, _DOMAINS, _DIM, _WIDTH, _EACH = 6, 3, 20, 24, 2
_HALVES = (slice(0, 12), slice(8, 20))  # of the joint space, where two heads write
# What is tuned for speed, and changes no result.
_SPEED = {"_CHUNK", "_CACHE", "_FRESH", "_TOGETHER", "_MOST", "_MANY", "_BATCH"}
# Numbers besides the defaults, where these leave a part of a method out.
_FURTHER: dict[str, list[dict[str, float]]] = {"hull": [{"depth": 0.3}]}


def table() -> dict[str, Any]:
    """All of it, as plain values."""
    return {
        "constants": constants(),
        "defaults": {name: plain(method.numbers()) for name, method in erasers.METHODS.items()},
        "trained": {name: plain(method()) for name, method in train.METHODS.items()},
        "edits": edits(),
        "pictures": pictures(),
    }


def constants() -> dict[str, Any]:
    """Numbers in capitals of the modules that hold the mathematics."""
    found = {}
    for package in (erasers, linalg, prototypes):
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            for name, value in vars(importlib.import_module(module.name)).items():
                numbers = value if isinstance(value, tuple) else (value,)
                if not re.fullmatch(r"_?[A-Z][A-Z_]*", name) or name in _SPEED or not numbers:
                    continue
                if all(isinstance(one, int | float) for one in numbers):
                    found[f"{module.name.removeprefix('nullspace_unlearn.')}.{name}"] = value
    return json.loads(json.dumps(found))


def plain(numbers: Any) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(numbers), default=str))


def edits(*names: str) -> dict[str, Any]:
    """Each eraser's edit of each kind of request, in a few numbers; by default all erasers."""
    made: dict[str, Any] = {}
    for name in names or erasers.METHODS:
        method = erasers.METHODS[name]
        for paradigm in method.paradigms:
            for space in method.spaces:
                for shown in (False, True):
                    if (shown and method.images == "none") or (not shown and space != "embedding"):
                        continue
                    given = problem(paradigm, shown, space)
                    for numbers in ({}, *_FURTHER.get(name, ())):
                        case = [name, paradigm, space, "images" if shown else "text"]
                        case += [f"{key} {value}" for key, value in numbers.items()]
                        try:
                            edit = method.edit(given, numbers)
                            found: Any = [edit.read.shape[-1], *summary(update(edit))]
                        except ValueError as error:
                            found = str(error).split(":")[0]
                        made[", ".join(case)] = found
    return made


def problem(paradigm: str, shown: bool, space: str) -> Given:
    """Names and cells that vary about a mean, as text prototypes do; images are less alike."""
    random = np.random.RandomState(7)  # whose stream is the same in every version

    def draw(*shape: int) -> Tensor:
        return torch.from_numpy(random.randn(*shape))

    common, of_class, of_domain = draw(_DIM), draw(_CLASSES, 1, _DIM), draw(1, _DOMAINS, _DIM)
    names = unit(3 * common + of_class[:, 0])
    cells = unit(3 * common + of_class + of_domain + 0.2 * draw(_CLASSES, _DOMAINS, _DIM))
    mask = torch.zeros(_CLASSES, _DOMAINS, dtype=torch.bool)
    where = {"global": ([2, 4],), "cell": (2, 1), "domain": (slice(None), 1)}
    mask[where[paradigm]] = True
    gone = mask.any(-1)
    seen = None
    if shown:
        labels = torch.arange(_CLASSES).repeat_interleave(_DOMAINS * _EACH)
        domains = torch.arange(_DOMAINS).repeat_interleave(_EACH).repeat(_CLASSES)
        images = (of_class + of_domain)[labels, domains] + 0.5 * draw(len(labels), _DIM)
        hidden = images @ draw(_DIM, _WIDTH) / 5 + 0.1 * draw(len(labels), _WIDTH)
        halves = torch.stack([torch.eye(_DIM).double()[:, some] for some in _HALVES])
        value = torch.cat([hidden.tanh(), (2 * hidden).sin()], 1)
        seen = Seen(images, labels, domains, "images", hidden, hidden.tanh(), value, halves)
    kept = ~gone if paradigm == "global" else torch.ones_like(gone)
    cells_told = None if paradigm == "global" else cells
    owner = torch.arange(_CLASSES)
    return Given(names, owner, mask, gone, kept, cells_told, seen, space)


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


def update(edit: Edit) -> Tensor:
    """What an edit takes away; of one that heads read, each head's."""
    heads = len(_HALVES) if edit.space == "value" else 1
    read, write = (part.unflatten(-2, (heads, -1)) for part in (edit.read, edit.write))
    return (read @ write.mT).flatten(0, 1)


def summary(operator: Tensor) -> list[float]:
    """Its norm, and two sums of its elements with fixed weights."""
    place = torch.arange(operator.numel(), dtype=torch.float64).reshape(operator.shape)
    sums = (operator.norm(), (operator * place.cos()).sum(), (operator * (3 * place).sin()).sum())
    return [float(one) for one in sums]


def pictures() -> dict[str, list[float]]:
    """The mean colour of a bundled picture of each cell."""
    return {
        f"{name}, {domain}": np.asarray(mini.render(name, domain, 3)).mean((0, 1)).tolist()
        for name in mini.CLASSES
        for domain in mini.DOMAINS
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(table(), indent=1) + "\n", encoding="utf-8")
