"""`nsu diff`: what differs between two checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from nullspace_unlearn.cli import options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nullspace_unlearn.difference import Difference


@click.command()
@click.argument("first")
@click.argument("second")
@click.option("--pretrained", help="Tag or weights file of FIRST, for an open_clip name.")
@click.option("--classes", metavar="A,B,C|FILE", help="Names to look for; absent: FIRST's own, "
              "else ImageNet's.")  # fmt: skip
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="Directions.")
@options.device_options
@options.output_options
def diff(
    first: str,
    second: str,
    pretrained: str | None,
    classes: str | None,
    top: int,
    device: str,
    precision: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Say what differs between two models: tensors, by how much, of what rank, and near what names.

    FIRST and SECOND are as --model of erase: folders, hf-hub:org/repo, nsu-mini.
    """
    from nullspace_unlearn.difference import difference
    from nullspace_unlearn.prototypes import names_that_fit
    from nullspace_unlearn.prototypes.vocabulary import imagenet_names
    from nullspace_unlearn.words import Words

    names = options.class_list(classes)
    one = options.load_model(first, pretrained, device, precision)
    two = options.load_model(second, None, device, precision)
    words = one.words or Words()
    if names is None:
        given = words.classes or imagenet_names()
        names = list(names_that_fit(one, given, words.class_templates))
    names = list(dict.fromkeys(names))
    found = difference(one, two, names, words.class_templates, top)
    if as_json:
        options.print_json(found.to_json())
    elif not quiet:
        click.echo("\n".join(_lines(found, first, second)))


def _lines(found: Difference, first: str, second: str) -> list[str]:
    if found.same:
        return [f"The same: all {found.tensors} tensors of {first} and {second}."]
    lines = [f"{len(found.changed)} of {found.tensors} tensors differ."]
    for title, keys in (
        (f"Only in {first}", found.only_first),
        (f"Only in {second}", found.only_second),
        ("Of other shapes", found.reshaped),
    ):
        lines += [f"{title}: {', '.join(keys)}"] if keys else []
    for one in found.changed:
        rank = "" if one.rank is None else f", rank {one.rank} of {min(one.shape)}"
        values = ", ".join(f"{value:.3g}" for value in one.singular_values[:5])
        lines.append(
            f"  {one.key} {list(one.shape)}: {one.relative:.2%} of its size{rank}"
            + (f", singular values {values}" if values else "")
        )
    for side in found.projections:
        lines += [
            "",
            f"The {side.side} projection, as an edit of the {side.space} "
            f"({side.unexplained:.1e} of it unexplained by one of the embedding):",
        ]
        for number, one_of in enumerate(side.directions, 1):
            parts = [f"  {number}. size {one_of.size:.3g}"]
            parts += [f"looks for {_named(one_of.reads)}"] if one_of.reads else []
            parts += [f"subtracts {_named(one_of.writes)}"] if one_of.writes else []
            lines.append("; ".join(parts))
        if side.moved:
            moved = ", ".join(f"{name} {share:.0%}" for name, share in side.moved.items())
            lines.append(f"  names whose score moves most: {moved}")
    return lines


def _named(names: Mapping[str, float]) -> str:
    return ", ".join(f"{name} ({cosine:+.2f})" for name, cosine in names.items())
