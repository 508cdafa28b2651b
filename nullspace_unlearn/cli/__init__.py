"""The command line `nsu`: one command a file; each parses, validates, calls the library, prints."""

from __future__ import annotations

import sys
import warnings

import click

from nullspace_unlearn import __version__
from nullspace_unlearn.cli.bench import bench
from nullspace_unlearn.cli.certify import certify
from nullspace_unlearn.cli.embed import embed
from nullspace_unlearn.cli.erase import erase
from nullspace_unlearn.cli.evaluate import evaluate
from nullspace_unlearn.cli.inspect import inspect
from nullspace_unlearn.cli.models import models
from nullspace_unlearn.cli.prototypes import prototypes
from nullspace_unlearn.cli.recipes import recipes
from nullspace_unlearn.cli.revert import revert
from nullspace_unlearn.cli.sweep import sweep
from nullspace_unlearn.cli.train import train

BAD_INPUT, FAILURE, INTERRUPTED = 2, 1, 130


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nsu")
@click.pass_context
def nsu(context: click.Context) -> None:
    """Make a CLIP model forget a class, a class in some domains, or whole domains.

    erase does it in closed form: no training, no data, in seconds. train learns from a few images.
    The result loads in stock open_clip.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (
    erase,
    train,
    embed,
    evaluate,
    sweep,
    inspect,
    certify,
    revert,
    models,
    prototypes,
    bench,
    recipes,
):
    nsu.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run `nsu`: exit 0 on success, 2 with one line for bad input, 1 with one line for a failure.

    Args:
        arguments: The command line without the program's name; absent means `sys.argv`.
    """
    warnings.showwarning = _show_warning
    try:
        status = nsu.main(arguments, prog_name="nsu", standalone_mode=False)
    except click.exceptions.Abort:
        _stop("interrupted", INTERRUPTED)
    except KeyboardInterrupt:
        _stop("interrupted", INTERRUPTED)
    except click.ClickException as error:
        _stop(error.format_message(), BAD_INPUT)
    except BrokenPipeError:
        sys.stderr.close()  # Whoever read our output has gone; there is nobody to tell.
        sys.exit(FAILURE)
    except (ValueError, OSError) as error:
        _stop(_words(error), BAD_INPUT)
    except Exception as error:  # a user is owed one line, whatever went wrong
        _stop(f"{type(error).__name__}: {_words(error)}", FAILURE)
    else:
        sys.exit(status or 0)


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def _stop(message: str, status: int) -> None:
    click.echo("nsu: " + " ".join(message.split()), err=True)
    sys.exit(status)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    click.echo("nsu: warning: " + " ".join(str(message).split()), err=True)
