"""The command line `nsu`: one command a file; each parses, validates, calls the library, prints."""

from __future__ import annotations

import dis
import os
import sys
import traceback
import warnings

import click

from nullspace_unlearn import __version__
from nullspace_unlearn.cli.apply import apply
from nullspace_unlearn.cli.audit import audit
from nullspace_unlearn.cli.bench import bench
from nullspace_unlearn.cli.certify import certify
from nullspace_unlearn.cli.diff import diff
from nullspace_unlearn.cli.doctor import doctor
from nullspace_unlearn.cli.embed import embed
from nullspace_unlearn.cli.erase import erase
from nullspace_unlearn.cli.evaluate import evaluate
from nullspace_unlearn.cli.export import export
from nullspace_unlearn.cli.inspect import inspect
from nullspace_unlearn.cli.models import models
from nullspace_unlearn.cli.prototypes import prototypes
from nullspace_unlearn.cli.push import push
from nullspace_unlearn.cli.recipes import recipes
from nullspace_unlearn.cli.report import report
from nullspace_unlearn.cli.revert import revert
from nullspace_unlearn.cli.sections import Sections
from nullspace_unlearn.cli.sweep import sweep
from nullspace_unlearn.cli.train import train
from nullspace_unlearn.spelling import printable

BAD_INPUT, FAILURE, INTERRUPTED = 2, 1, 130
_OURS = "nullspace_unlearn."


@click.group(
    cls=Sections,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@click.version_option(__version__, prog_name="nsu")
@click.option(
    "--debug", is_flag=True, expose_value=False, help="Show where in the code an error arose."
)
@click.pass_context
def nsu(context: click.Context) -> None:
    """Make a CLIP model forget a class, a class in some domains, or whole domains.

    erase does it in closed form: no training, no data. train learns from a few images.
    The result loads in stock open_clip, transformers or sentence-transformers, as the model did.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


for command in (
    erase,
    train,
    apply,
    diff,
    embed,
    evaluate,
    audit,
    sweep,
    inspect,
    certify,
    revert,
    export,
    push,
    models,
    doctor,
    prototypes,
    bench,
    recipes,
    report,
):
    nsu.add_command(command)


def main(arguments: list[str] | None = None) -> None:
    """Run `nsu`: exit 0 on success, 2 with one line for bad input, 1 with one line for a failure.

    Args:
        arguments: The command line without the program's name; absent means `sys.argv`.
    """
    warnings.showwarning = _show_warning
    # Before torch is imported: else its idle threads burn the time of whatever shares the machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        status = nsu.main(arguments, prog_name="nsu", standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _stop("interrupted", INTERRUPTED)
    except click.ClickException as error:
        _stop(error.format_message(), BAD_INPUT)
    except BrokenPipeError:  # Whoever read our output has gone; there is nobody to tell.
        _drop_output()
        sys.exit(FAILURE)
    except Exception as error:  # a user is owed one line, whatever went wrong
        if "--debug" in (sys.argv[1:] if arguments is None else arguments):
            traceback.print_exc()
        if is_bad_input(error):
            _stop(_words(error), BAD_INPUT)
        bug = "" if isinstance(error, RuntimeError) else " (a bug: nsu --debug ... shows where)"
        _stop(f"{type(error).__name__}: {_words(error)}{bug}", FAILURE)
    else:
        sys.exit(status or 0)


def is_bad_input(error: BaseException) -> bool:
    """Whether an error tells of what was given, or of a mistake in the code.

    Args:
        error: As it was caught.

    Returns:
        True for what the system says of files, and for a `ValueError` that a line of this package
        raises on purpose. One that comes out of Python or another library was not foreseen.
    """
    if isinstance(error, OSError):
        return True
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if not isinstance(error, ValueError) or last is None:
        return False
    code = last.tb_frame.f_code
    on_purpose = dis.opname[code.co_code[last.tb_lasti]] == "RAISE_VARARGS"
    return on_purpose and str(last.tb_frame.f_globals.get("__name__")).startswith(_OURS)


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def _stop(message: str, status: int) -> None:
    click.echo("nsu: " + printable(" ".join(message.split())), err=True)
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
    sys.exit(status)


def _drop_output() -> None:
    """Send what could not be written nowhere: Python tries once more at its end, and complains."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    from nullspace_unlearn.data.picture import being_read

    file = being_read()
    of = f"{file}: " if file else ""
    text = printable(of + " ".join(str(message).split()))
    click.echo(f"nsu: warning: {text}", err=True)
