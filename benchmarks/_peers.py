"""What is compared: trained methods at their best numbers, and the closed forms beside them.

The numbers in `PEERS` are the best found by `python benchmarks/trained.py tune` on images that no
table reports.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _worlds import World, plain

from nullspace_unlearn import plans, train, unlearn
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.prototypes import from_pictures, synthesise
from nullspace_unlearn.train import Settings, Task

KINDS = ("domain", "cell", "global")
CLOSED = ("hull", "gated, text", "gated, pixels", "gated, 8 images", "nullspace, text")


@dataclass(frozen=True)
class Peer:
    """A row of the tables.

    Attributes:
        method: The trained method.
        numbers: Its numbers, where they are not the defaults.
        on: Kind of request -> further numbers there.
        kinds: The kinds of request it is measured on.
    """

    method: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    on: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    kinds: tuple[str, ...] = KINDS


def run_trained(
    world: World,
    peer: Peer,
    forget: Forget,
    seed: int,
    epochs: int | None = None,
    keep: Path | None = None,
) -> dict[str, Any]:
    """Train one method on one request and measure it; `keep` as for `World.measure`."""
    shots, validation = world.draw(seed)
    best = {**peer.numbers, **peer.on.get(forget.paradigm, {})}
    numbers = {key: plain(value) for key, value in best.items()}
    if epochs is not None:
        numbers["epochs"] = str(epochs)
    method = train.configure(peer.method, numbers)
    task = Task(world.clip, forget, world.words, shots, validation, seed)
    started = time.perf_counter()
    trained = train.train(method, task, Settings(), quiet=True)
    seconds = time.perf_counter() - started
    return {
        **world.measure(forget, trained.clip, keep),
        "seconds": seconds,
        "images": len(shots) + len(validation) if method.sees_images else 0,
        "epochs": len(trained.log),
        "diverged": trained.diverged,
        "validation": [entry.get("validation", {}).get("h4") for entry in trained.log],
    }


def run_closed(world: World, label: str, forget: Forget, seed: int) -> dict[str, Any]:
    """Derive and measure one closed form."""
    name, _, source = label.partition(", ")
    shots, _ = world.draw(seed)
    started = time.perf_counter()
    made = plans.plan(
        world.clip,
        forget,
        classes=world.words.classes,
        domains=world.words.domains,
        method=name,
    )
    visual = None
    if source == "8 images":
        visual = world.visual(shots)
    elif source == "pixels":
        given = (world.clip, world.words.classes, world.words.domains, world.words.cell_templates)
        visual = from_pictures(world.clip, synthesise(*given, cache=None, quiet=True))
    edited = unlearn.erase(world.clip, made, visual=visual).fold(world.clip)
    seconds = time.perf_counter() - started
    return {
        **world.measure(forget, edited),
        "seconds": seconds,
        "images": len(shots) if source == "8 images" else 0,
        "epochs": 0,
        "diverged": None,
    }


def closed(kind: str) -> tuple[str, ...]:
    """The closed forms that a kind of request is measured with."""
    if kind == "global":
        return ("hull", "nullspace, text")
    return CLOSED[1:]


def sees_draw(world: str, label: str) -> bool:
    """Whether a row depends on the draw of images."""
    return label == "gated, 8 images" or label in PEERS[world]


_ADU_PARTS: dict[str, dict[str, Any]] = {
    "adu, neither": {"generator": False, "gamma": 0, "lam": 0},
    "adu, generator only": {"gamma": 0, "lam": 0},
    "adu, disentangling only": {"generator": False},
    # With the generator: the paper's 64.0 and 68.6 lie between the generator alone and both.
    "adu, CE only": {"lam": 0},
    "adu, MMD only": {"gamma": 0},
}

_WITHOUT_IMAGES = {
    "lipschitz": Peer("lipschitz", {"share": 1.0, "noises": 2, "pictures": 4, "epochs": 1}),
    "space_adaptation": Peer("space_adaptation", kinds=("global",)),
    "space_adaptation, opposite": Peer(
        "space_adaptation", {"target": "opposite"}, kinds=("global",)
    ),
}

_GENTLE = {"global": {"lr": 1e-4}}


def _adu(numbers: Mapping[str, Any], elsewhere: Mapping[str, Any]) -> dict[str, Peer]:
    """ADU and its ablation on whole domains; in full, with other numbers, on other requests."""
    whole = Peer("adu", numbers, on={"cell": elsewhere, "global": elsewhere})
    parts = {
        label: Peer("adu", {**numbers, **off}, kinds=("domain",))
        for label, off in _ADU_PARTS.items()
    }
    return {"adu": whole, **parts}


# Chosen on whole domains, but for what is said under `on` and elsewhere.
PEERS: dict[str, dict[str, Peer]] = {
    "bundled": {
        **_adu({"lr": 0.0025, "epochs": 20}, elsewhere={"lr": 0.01, "epochs": 6}),
        "subgroup": Peer("subgroup", {"epochs": 4}),
        "cliperase": Peer(
            "cliperase",
            {"lr": 5e-5, "epochs": 12},
            on={"cell": {"lr": 2e-4, "epochs": 6}, "global": {"lr": 1e-4, "epochs": 6}},
        ),
        "salun": Peer("salun", {"lr": 6e-4, "epochs": 8}, on=_GENTLE),
        "ascent": Peer("ascent", {"lr": 5e-5, "epochs": 14}),
        "memorise_forget": Peer("memorise_forget", {"lr": 1e-3, "epochs": 8}, on=_GENTLE),
        "finetune": Peer("finetune", {"lr": 1e-3, "epochs": 8}),
        **_WITHOUT_IMAGES,
    },
    "pacs": {
        **_adu({"lr": 0.01, "epochs": 8}, elsewhere={}),
        "adu, tuned": Peer(
            "adu",
            {"gamma": 3, "lam": 1, "forget": 3, "lr": 0.03, "epochs": 10},
            kinds=("domain",),
        ),
        "subgroup": Peer("subgroup", {"epochs": 4}),
        "cliperase": Peer("cliperase", {"lr": 2e-4, "epochs": 6}, on=_GENTLE),
        "salun": Peer("salun", {"lr": 3e-4, "epochs": 5}, on=_GENTLE),
        "ascent": Peer("ascent", {"lr": 1e-4, "epochs": 8}),
        "memorise_forget": Peer("memorise_forget", {"lr": 3e-4, "epochs": 5}, on=_GENTLE),
        "finetune": Peer("finetune", {"lr": 3e-4, "epochs": 4}),
        **_WITHOUT_IMAGES,
    },
}
"""World -> label -> row."""
