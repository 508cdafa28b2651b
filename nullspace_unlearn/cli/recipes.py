"""`nsu recipes`: the benchmarks that come along, and a check of one's own."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from nullspace_unlearn.cli import options


@click.group()
def recipes() -> None:
    """List, copy and check recipes of benchmarks."""


@recipes.command()
@click.option(
    "--data",
    "root",
    default=".",
    show_default=True,
    metavar="ROOT",
    help="Say whether their data are below this folder.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout, and nothing else.")
def ls(root: str, as_json: bool) -> None:
    """The recipes that come along, and whether their data are there."""
    from nullspace_unlearn.bench.datasets import absent
    from nullspace_unlearn.bench.recipe import packaged, read_recipe

    listed = []
    for name, path in packaged().items():
        recipe = read_recipe(path)
        missing = absent(recipe.data, Path(root))
        listed.append(
            {
                "name": name,
                "about": recipe.about,
                "where": recipe.data.where,
                "missing": None if missing is None else str(Path(root) / missing),
            }
        )
    if as_json:
        options.print_json({"recipes": listed})
        return
    width = max(len(str(one["name"])) for one in listed)
    for one in listed:
        click.echo(f"{one['name']:{width}}  {one['about']}")
        state = f"data absent: {one['missing']}" if one["missing"] else "data present"
        click.echo(f"{'':{width}}  {state}")


@recipes.command()
@click.argument("name")
@click.argument("dest", required=False, metavar="[DEST]")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def cp(name: str, dest: str | None, overwrite: bool) -> None:
    """Copy a recipe that comes along, to change it: to DEST, or to NAME.yaml here."""
    from nullspace_unlearn.bench.recipe import find_recipe, packaged, read_recipe
    from nullspace_unlearn.files import new_file

    source = packaged().get(name) or find_recipe(name)
    target = Path(dest or source.name)
    target = target / source.name if target.is_dir() else target
    options.claim(overwrite, target)
    if target.is_file() and target.stat().st_size:
        try:
            read_recipe(target)
        except ValueError:
            raise ValueError(
                f"output {str(target)!r} is no recipe, so it is not replaced"
            ) from None
    with new_file(target, overwrite) as temporary:
        temporary.write_bytes(source.read_bytes())
    click.echo(f"Wrote {target}")


@recipes.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
def validate(files: tuple[str, ...]) -> None:
    """Check that each FILE is a recipe: every key, type, method and number."""
    from nullspace_unlearn.bench.recipe import find_recipe, read_recipe

    wrong = 0
    for file in files:
        try:
            read_recipe(find_recipe(file))
        except ValueError as error:
            wrong += 1
            click.echo(f"nsu: {error}", err=True)
        else:
            click.echo(f"{file}: valid")
    if wrong:
        sys.exit(2)
