"""`--help` of a command with many options: in sections, by what an option is about."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

SECTIONS: dict[str, tuple[str, ...]] = {
    "What to forget": (
        "class_", "domain", "all_classes", "requests", "recipe", "keep", "alias", "hyponyms",
        "classes",
    ),
    "Words": ("template", "domain_word", "class_word"),
    "How": (
        "method", "strength", "depth", "rank", "ridge", "set", "side", "wordings", "space",
        "images_too", "prototypes", "images", "shots", "validation",
    ),
    "Model": ("model", "pretrained", "base", "retrained", "device", "precision"),
    "Images": (
        "data", "listing", "test", "test_listing", "batch_size", "num_workers", "seed",
    ),
    "Judging": ("deployed", "fail_if", "discard", "against", "phrasing"),
    "Output": (
        "output", "overwrite", "undo", "patch", "heatmap", "curve", "cache", "no_cache", "as_json",
        "quiet",
    ),
}  # fmt: skip
"""Title -> names of the options' parameters. Others come last."""

_MANY = 10


class Sections(click.Group):
    """A group whose commands show their options in sections."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command, and let its help be in sections where it has many options."""
        if len(cmd.params) > _MANY and not isinstance(cmd, click.Group):
            cmd.format_options = partial(_write, cmd)  # type: ignore[method-assign]
        super().add_command(cmd, name)


def _write(command: click.Command, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    where = {name: title for title, names in SECTIONS.items() for name in names}
    rows: dict[str, list[Any]] = {title: [] for title in ("Options", *SECTIONS)}
    for param in command.get_params(ctx):
        if (record := param.get_help_record(ctx)) is not None:
            rows[where.get(str(param.name), "Options")].append(record)
    # "Options" last: what no section is for, and --help.
    for title in (*SECTIONS, "Options"):
        if rows[title]:
            with formatter.section(title):
                formatter.write_dl(rows[title])
