"""What is compared: trained methods at their best numbers, and the closed forms beside them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _worlds import World, plain

from nullspace_unlearn import plans, train, unlearn
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.prototypes import from_pictures
from nullspace_unlearn.train import Settings, Task

WORLDS = {"bundled": "nsu-mini", "pacs": "clip-vit-pacs", "pacs-rn": "clip-rn-pacs"}
"""World -> its model."""

KINDS = ("domain", "cell")
CLOSED = (
    "neutral, pixels",
    "neutral, 8 images",
    "gated, 8 images",
    "nullspace, text",
    "leace, text",
)


@dataclass(frozen=True)
class Peer:
    """A row of the tables.

    Attributes:
        method: The trained method.
        numbers: Its numbers, where they are not the defaults.
        tried: What they were chosen among.
    """

    method: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    tried: str = ""


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
    numbers = {key: plain(value) for key, value in peer.numbers.items()}
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
        "validation": [entry.get("validation", {}).get("balance") for entry in trained.log],
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
    space = plans.space_for(world.clip, made, None)
    if source == "8 images":
        visual = world.visual(shots, space)
    elif source == "pixels":
        visual = from_pictures(world.clip, world.pictures, space=space)
    edited = unlearn.erase(world.clip, made, visual=visual).fold(world.clip)
    seconds = time.perf_counter() - started
    return {
        **world.measure(forget, edited),
        "seconds": seconds,
        "images": len(shots) if source == "8 images" else 0,
        "epochs": 0,
        "diverged": None,
    }


def sees_draw(world: str, label: str) -> bool:
    """Whether a row depends on the draw of images."""
    return label.endswith("8 images") or label in PEERS[world]


EARLIER = "lr, by the same rule and draw, in an earlier search whose runs were not kept"
_PICTURES = {"share": 1.0, "noises": 2, "pictures": 4, "epochs": 1}

PEERS: dict[str, dict[str, Peer]] = {
    "bundled": {
        "cliperase": Peer("cliperase", {"lr": 2e-4, "epochs": 8}, EARLIER),
        "salun": Peer("salun", {"lr": 6e-4, "epochs": 8}, "lr 6e-4, 1.2e-3"),
        "memorise_forget": Peer(
            "memorise_forget",
            {"lr": 1e-3, "epochs": 8},
            "lr 3e-4, 1e-3; below 3e-3 of an earlier search",
        ),
        "ascent": Peer("ascent", {"lr": 5e-5, "epochs": 14}, "lr 5e-5, 1.5e-4"),
        "adu, MMD only": Peer(
            "adu", {"lr": 2.5e-3, "epochs": 20, "gamma": 0}, "lr 2.5e-3 x 20, 1e-2 x 8 epochs"
        ),
        "subgroup": Peer("subgroup", {"lr": 3e-3, "epochs": 4}, "lr 3e-3"),
        "finetune": Peer("finetune", {"lr": 1e-3, "epochs": 8}, "lr 1e-3"),
        "lipschitz": Peer("lipschitz", {**_PICTURES, "lr": 1e-4}, "lr 5e-5, 1e-4"),
    },
    "pacs": {
        "cliperase": Peer("cliperase", {"lr": 5e-4, "epochs": 6}, EARLIER),
        "salun": Peer("salun", {"lr": 3e-4, "epochs": 5}, EARLIER),
        "memorise_forget": Peer("memorise_forget", {"lr": 1e-3, "epochs": 5}, EARLIER),
        "ascent": Peer("ascent", {"lr": 1e-4, "epochs": 8}, EARLIER),
        "subgroup": Peer("subgroup", {"lr": 3e-3, "epochs": 4}, "lr 3e-3, 1e-2"),
        "adu": Peer("adu", {"lr": 1e-2, "epochs": 8}, "lr 1e-2; the generator alone .01, .03"),
        "finetune": Peer("finetune", {"lr": 1e-3, "epochs": 4}, "lr 3e-4, 1e-3"),
        "lipschitz": Peer("lipschitz", {**_PICTURES, "lr": 1e-4}, "lr 5e-5, 1e-4"),
    },
    "pacs-rn": {
        "cliperase": Peer("cliperase", {"lr": 5e-4, "epochs": 6}, "lr 1e-4, 5e-4"),
        "salun": Peer("salun", {"lr": 3e-4, "epochs": 5}, "lr 1e-4, 3e-4"),
        "memorise_forget": Peer("memorise_forget", {"lr": 3e-4, "epochs": 5}, "lr 3e-4, 1e-3"),
        "ascent": Peer("ascent", {"lr": 3e-5, "epochs": 8}, "lr 3e-5, 1e-4"),
    },
}
"""World -> label -> row: of the numbers tried, those of the best `balance` when the first whole
domain goes, from 8 images a cell of a draw of their own, on images that no table reports (15 a
cell: bundled pictures on other seeds, training images of PACS)."""
