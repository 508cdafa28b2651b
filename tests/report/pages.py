"""Folders as runs write them, of any classes and domains: made by the package's own figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from nullspace_unlearn.evaluate.compare import compared
from nullspace_unlearn.evaluate.verdict import in_words
from nullspace_unlearn.features import Features
from nullspace_unlearn.forget import Forget

HOSTILE = (
    "car",
    "<script>document.title='run'</script>",
    "\"><img src=x onerror=alert(1)>'",
    "{{ 7 * 7 }}{% raw %}",
    "=HYPERLINK(\"http://example.org\")",
    "سيارة حمراء",
    "TURNED",
    "CONTROLS",
    "🚗👩‍🔬" * 5,
    "a" * 10_000,
    "$\\frac{1}{0}$ & 100 % _under_ ]]>",
    "javascript:alert(1)",
)  # fmt: skip


# Which no request takes, but a file may hold.
_PLANTED = {"TURNED": "\u202egnorts\u202c", "CONTROLS": "\x1b[31mred\x1b[0m\x07"}


def edited_folder(
    folder: Path,
    classes: Sequence[str] = ("car", "dog", "tree", "bus", "cat"),
    domains: Sequence[str] = ("photo", "sketch"),
    each: int = 3,
    draws: int = 10,
    share: float = 1.0,
) -> dict[str, Any]:
    """A folder as `nsu erase` leaves it; the first class is forgotten in the first domain.

    Args:
        folder: The folder to make.
        classes: Names of the classes.
        domains: Names of the domains.
        each: Images of a cell; the last cell of the first row has none.
        draws: Samples behind the intervals.
        share: Strength of the edit.

    Returns:
        What its report.json says.
    """
    torch.manual_seed(3)
    dim = 24
    text = torch.nn.functional.normalize(torch.randn(len(classes), dim), dim=-1)
    cells = [(c, d) for c in range(len(classes)) for d in range(len(domains)) for _ in range(each)]
    cells = [cell for cell in cells if cell != (0, len(domains) - 1)]
    labels, columns = torch.tensor(cells).unbind(1)
    images = text[labels] + 0.25 * torch.randn(len(cells), dim)
    features = Features(images, labels, tuple(classes), domains=columns,
                        domain_names=tuple(domains))  # fmt: skip
    gone = ((labels == 0) & (columns == 0))[:, None]
    after = images - share * gone * (images @ text[0])[:, None] * text[0]
    after = after + 0.1 * torch.randn(len(cells), dim)
    request = Forget((classes[0],), (domains[0],))
    found = compared(features, request, (images, text), (after, text))
    report = {
        "method": "gated", "spectrum": [2.0, 0.5, 0.25], "data": "made-up images", "left_out": 0,
        "command": "nsu erase --class car", "versions": {"nullspace-unlearn": "0", "torch": "2"},
        **found.to_json(draws=draws), **in_words(found),
        "certificate": {
            "holds": True, "largest_violation": 1e-8, "smallest_room": 0.5,
            "violation": {classes[0]: 1e-8}, "means": {classes[0]: "a mean of kept names"},
        },
    }  # fmt: skip
    edit = {
        "method": "gated", "numbers": {"rank": 3, "ridge": 0.01}, "strength": share,
        "side": "visual", "parameter": ["visual.proj"], "request": request.to_json(),
        "kept": list(classes[1:]),
    }  # fmt: skip
    recipe = {"model": "tiny", "pretrained": None, "weights_sha256": "ab" * 32, "edits": [edit]}
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text("{}")
    (folder / "open_clip_model.safetensors").write_bytes(b"weights")
    texts = {"report.json": json.dumps(report), "recipe.yaml": yaml.safe_dump(recipe)}
    for name, text in texts.items():
        for word, planted in _PLANTED.items():
            text = text.replace(f'"{word}"', json.dumps(planted))
            text = text.replace(f"- {word}\n", f"- {json.dumps(planted)}\n")
        (folder / name).write_text(text, encoding="utf-8")
    return report


def audit_folder(folder: Path, phrasing: str = "a photo of a car") -> dict[str, Any]:
    """A folder as `nsu audit` leaves it.

    Args:
        folder: The folder to make.
        phrasing: What was tried first.

    Returns:
        What its audit.json says.
    """
    finding = {
        "name": "left", "title": "left", "good": "low", "images": 40, "interval": [0.1, 0.4],
        "values": {"edited": 0.21, "original": 1.0, "random": 0.99, "chance": 0.0},
    }  # fmt: skip
    curve = {
        "name": "relearned", "title": "Learned again from k images", "x_title": "images",
        "y_title": "accuracy", "x": [1, 2, 4, 8],
        "lines": {"edited": [0.1, 0.5, None, 0.9], "original": [1, 1, 1, 1], "chance": [0.1] * 4},
    }  # fmt: skip
    row = {"text": phrasing, "kind": "synonym", "value": 0.7, "original": 1.0, "chance": None}
    asked = [
        {
            "name": name, "title": title, "asks": f"{title}?", "paper": paper, "verdict": verdict,
            "sentence": "As measured.", "findings": [finding], "curves": curves, "rows": rows,
        }
        for name, title, paper, verdict, curves, rows in (
            ("names", "Asked by name", "", "not forgotten", [], [row]),
            ("relearning", "Learned again", "arXiv 1", "recoverable with 4 images", [curve], []),
        )
    ]  # fmt: skip
    said = {
        "format": 1, "command": "nsu audit out --against nsu-mini", "versions": {"torch": "2"},
        "edited": "out", "original": "tiny", "retrained": None, "hashes": {"edited": "cd" * 32},
        "request": {"classes": ["car"], "domains": ["photo"], "words": "car in photo"},
        "data": "made-up images", "images": {"forgotten": 40, "others": 400},
        "verdict": "not forgotten", "questions": asked,
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "audit.json").write_text(json.dumps(said), encoding="utf-8")
    return said
