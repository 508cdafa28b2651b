"""`nsu certify`: recompute an output folder's certificates from its weights alone."""

from __future__ import annotations

import sys

import click

from nullspace_unlearn.cli import options


@click.command()
@click.argument("folder")
@click.option(
    "--template", multiple=True, metavar="TEXT", help="Check these in place of the recipe's."
)
@click.option(
    "--classes", metavar="A,B,C|FILE", help="Names that stay; absent: those the recipe says."
)
@options.device_options
@options.output_options
def certify(
    folder: str,
    template: tuple[str, ...],
    classes: str | None,
    device: str,
    precision: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Prove from the saved weights that what FOLDER forgot cannot win on any image.

    All that its history forgets everywhere is proven, whenever it was forgotten. Exits 1 where the
    proof fails.
    """
    from nullspace_unlearn.clip import read_folder
    from nullspace_unlearn.proof import prove

    read_folder(folder)  # which says it where it is no model folder
    clip = options.load_model(folder, None, device, precision)
    proof = prove(clip, options.class_list(classes), template or None)
    if as_json:
        options.print_json(proof.to_json())
    elif not quiet:
        for one in proof.proven:
            shares = ", ".join(f"{w:.2f} {n}" for n, w in list(one.weights.items())[:5])
            verdict = "holds" if one.holds else "FAILS"
            click.echo(f"{one.name}: {verdict}, violation {one.violation:.1e}; = {shares}")
        for means in dict.fromkeys(one.means for one in proof.proven):
            click.echo(f"That is: {means}.")
        click.echo(f"Assumed: {len(proof.kept)} names stay, as {proof.kept_from} says.")
        if proof.left_out:
            click.echo(f"Left out, as forgotten or the same to it: {', '.join(proof.left_out)}.")
        if proof.uncovered:
            cells = "; ".join(proof.uncovered)
            click.echo(f"Not covered, since forgotten in some domains only: {cells}.")
    if not proof.holds:
        broken = [one for one in proof.proven if not one.holds]
        worst = max(broken, key=lambda one: one.violation)
        click.echo(
            f"nsu: the certificate fails for {worst.name!r}: violation {worst.violation:.1e}, "
            f"{worst.means}",
            err=True,
        )
        sys.exit(1)
