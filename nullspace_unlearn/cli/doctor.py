"""`nsu doctor`: what is installed, what it runs on, what can be edited, what is missing."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from nullspace_unlearn.cli import options
from nullspace_unlearn.version import __version__


@click.command()
@options.model_options
@options.output_options
def doctor(model: str, pretrained: str | None, as_json: bool, quiet: bool) -> None:
    """Say what is installed, what it runs on, what of a model can be edited, and what is missing.

    Exits 1 where something is missing that every command needs. Put what it prints into a report of
    a fault: no path or name of yours is in it.
    """
    from nullspace_unlearn.installation import needed, python

    found = needed()
    wrong = [one.said for one in found if not one.extra and not one.fits]
    lacking: dict[str, list[str]] = {}
    for one in found:
        if one.extra and not one.fits:
            lacking.setdefault(one.extra, []).append(one.said)
    said: dict[str, Any] = {
        "nsu": __version__,
        "python": python(),
        "packages": {one.name: one.version for one in found if one.version is not None},
        "extras_missing": lacking,
        "wrong": wrong,
    }
    if not wrong:
        said |= {"devices": _devices(), "cache": _cache(), "edits": _edits(model, pretrained)}
    if as_json:
        options.print_json(said)
    elif not quiet:
        click.echo("\n".join(_lines(said)))
    if wrong:
        sys.exit(1)


def _devices() -> list[str]:
    import torch

    cards = [
        f"cuda:{i}: {torch.cuda.get_device_name(i)}, "
        f"{torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB"
        for i in range(torch.cuda.device_count())
    ]
    return [*cards, f"cpu: {os.cpu_count()} cores, {torch.get_num_threads()} threads"]


def _cache() -> str:
    from nullspace_unlearn.files import default_cache, refuse_existing

    try:
        refuse_existing(default_cache() / "picture", overwrite=True)
    except (ValueError, OSError, RuntimeError):
        return "cannot be written: nothing is cached"
    return "can be written"


def _edits(model: str, pretrained: str | None) -> dict[str, Any]:
    """What of a model can be edited, each side in a sentence, or why not."""
    from nullspace_unlearn.cli.models import side_in_words
    from nullspace_unlearn.clip import describe

    try:
        clip = options.load_model(model, pretrained, "cpu", "fp32")
    except (ValueError, RuntimeError) as error:
        return {"failed": str(error)}
    return {side: side_in_words(found) for side, found in describe(clip.model).items()}


def _lines(said: dict[str, Any]) -> list[str]:
    packages = ", ".join(f"{name} {version}" for name, version in said["packages"].items())
    lines = [f"nsu       {said['nsu']}", f"python    {said['python']}", f"packages  {packages}"]
    lines += [f"device    {one}" for one in said.get("devices", ())]
    if "cache" in said:
        lines.append(f"cache     {said['cache']}")
    lines += [f"edits     {side}: {what}" for side, what in said.get("edits", {}).items()]
    for extra, missing in said["extras_missing"].items():
        lines.append(f"without   pip install 'nullspace-unlearn[{extra}]': {', '.join(missing)}")
    lines += [f"WRONG     {one}" for one in said["wrong"]]
    return [*lines, "Nothing that every command needs is missing." if not said["wrong"] else ""]
