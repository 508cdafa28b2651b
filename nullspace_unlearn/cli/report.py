"""`nsu report`: what runs wrote as one page that opens from disk."""

from __future__ import annotations

import click

from nullspace_unlearn.cli import options


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--output", default="report.html", show_default=True, metavar="HTML", help="The page to write."
)
@click.option(
    "--tables",
    metavar="DIR",
    help="Also write every table (CSV, LaTeX) and plot (PNG, SVG) to this folder.",
)
@click.option("--overwrite", is_flag=True, help="Replace existing outputs.")
@options.output_options
def report(
    runs: tuple[str, ...],
    output: str,
    tables: str | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show what runs wrote as one self-contained HTML page.

    \b
    nsu report out                               an edited model
    nsu report out out.audit --output page.html  with its audit
    nsu report one two sweep bench-bundled       several, compared

    RUN is a folder that nsu erase, train, audit, sweep, bench or prototypes wrote. The page needs
    no network, reads as well in print and on a phone, and holds what the runs measured: nothing is
    measured anew.
    """  # noqa: D301
    options.claim(overwrite, output, tables)

    from nullspace_unlearn.report.page import write_page

    done = write_page(runs, output, tables, overwrite)
    if as_json:
        options.print_json({**done.to_json(), "output": output})
    elif not quiet:
        for part in done.parts:
            verdict = f": {part.verdict.word}" if part.verdict else ""
            click.echo(f"{part.title}, {part.what}{verdict}")
        beside = f" and {len(done.tables)} files in {tables}" if tables else ""
        click.echo(f"Wrote {output}{beside}")
