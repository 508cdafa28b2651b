"""Options that every command shares.

The library is imported inside functions here and in the commands: torch and open_clip take seconds
to import, which `nsu --help` and a mistyped option need not wait for.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import shlex
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nullspace_unlearn.cli import completion

if TYPE_CHECKING:
    from nullspace_unlearn.clip import Clip

BUNDLED = "nsu-mini"

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def together(*options: Decorator) -> Decorator:
    """Several options as one decorator, in this order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def gathered(name: str, into: type, *options: Decorator) -> Decorator:
    """Several options that reach the command as one frozen object.

    Args:
        name: The command's parameter.
        into: A dataclass whose fields are the options' names.
        *options: The options, in this order; none where others declare them.

    Returns:
        A decorator for the command.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def gather(**given: Any) -> Any:
            own = {field.name: given.pop(field.name) for field in fields(into)}
            return command(**given, **{name: into(**own)})

        return together(*options)(gather)

    return decorate


class MethodOption(click.Option):
    """--method, whose help names the methods that there are: asked for, for that takes torch."""

    def __init__(self, names: Sequence[str], told: str, able: str = "known", **rest: Any) -> None:
        """Take what the help says.

        Args:
            names: The option's names.
            told: What the help says behind the names of the methods.
            able: Which methods: all that are "known", or those that can be "swept".
            **rest: As for `click.Option`.
        """
        super().__init__(names, metavar="NAME", shell_complete=completion.methods, **rest)
        self.told, self.able = told, able

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The names in the table's order, then what is told."""
        if self.able == "swept":
            from nullspace_unlearn.evaluate.sweep import swept

            names = swept()
        else:
            from nullspace_unlearn.erasers import METHODS

            names = tuple(METHODS)
        self.help = f"{', '.join(names[:-1])} or {names[-1]}; {self.told}"
        return super().get_help_record(ctx)


model_options: Decorator = together(
    click.option(
        "--model",
        default=BUNDLED,
        show_default=True,
        shell_complete=completion.models,
        help="open_clip name, hf-hub:org/repo, local-dir:PATH, a model folder, or nsu-mini.",
    ),
    click.option("--pretrained", help="Tag or weights file, for an open_clip name."),
)

device_options: Decorator = together(
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:i."),
    click.option(
        "--precision",
        default="fp32",
        show_default=True,
        help="fp32, fp16, bf16, pure_fp16 or pure_bf16; edits are always derived in float64.",
    ),
)


def _no_bars(_: click.Context, __: click.Parameter, quiet: bool) -> bool:
    # Which `progress` reads, and those of other libraries, that no command has imported by now.
    if quiet:
        os.environ["TQDM_DISABLE"] = "1"
    return quiet


output_options: Decorator = together(
    click.option("--json", "as_json", is_flag=True, callback=_no_bars,
                 help="Print JSON on stdout, and nothing else."),
    click.option("--quiet", is_flag=True, callback=_no_bars, help="No progress bars, no report."),
)  # fmt: skip


cache_options: Decorator = together(
    click.option("--cache", metavar="DIR", help="Where pictures and prompts' features are kept."),
    click.option("--no-cache", is_flag=True, help="Keep neither."),
)


def claim(overwrite: bool, *outputs: str | Path | None, working: str | Path | None = None) -> None:
    """Refuse outputs before any work is spent, and keep other processes from them until the end.

    Args:
        overwrite: Whether outputs that exist may be replaced.
        *outputs: Files and folders that the command is to write; None counts for nothing.
        working: Where the command keeps what it needs to go on, and removes it in the end.

    Raises:
        ValueError: If one exists, cannot be written, is or lies inside another, or another process
            is writing it.
    """
    from nullspace_unlearn.files import claimed, refuse_existing

    paths = [Path(output) for output in outputs if output is not None]
    for path in paths:
        refuse_existing(path, overwrite)
    every = [*paths, *([Path(working)] if working else [])]
    for one, other in permutations(every, 2):
        if one.resolve() == other.resolve():
            raise ValueError(f"{str(one)!r} is to be written twice: name another file or folder")
        if one.resolve().is_relative_to(other.resolve()):
            raise ValueError(
                f"output {str(one)!r} is inside the output {str(other)!r}, which is written as a "
                "whole: name another file or folder"
            )
    for path in every:
        click.get_current_context().with_resource(claimed(path))


def cache_folder(cache: str | None, no_cache: bool) -> Path | None:
    """The folder that `cache_options` name; None for none."""
    from nullspace_unlearn.files import clear_cache, default_cache, refuse_existing

    if no_cache:
        return None
    if cache:
        folder = Path(cache)
    else:
        try:
            folder = default_cache()
            refuse_existing(folder / "picture", overwrite=True)
        except (ValueError, OSError, RuntimeError) as error:  # no home, or one that is not ours
            warnings.warn(f"nothing is cached: {error}", stacklevel=2)
            return None
    clear_cache(folder)
    return folder


def use_text_cache(cache: str | None, no_cache: bool) -> Path | None:
    """Encode no prompt twice while the command runs, nor again what `cache_options` say is kept.

    Returns:
        As `cache_folder`.
    """
    from nullspace_unlearn.prototypes.text_cache import cached_text

    folder = cache_folder(cache, no_cache)
    click.get_current_context().with_resource(cached_text(folder))
    keep_contents(folder)
    return folder


def keep_contents(folder: Path | None) -> None:
    """Read no file twice to hash it while the command runs, nor one that the folder knows."""
    from nullspace_unlearn.fingerprint import kept_contents

    click.get_current_context().with_resource(kept_contents(folder))


def pairs(option: str, values: tuple[str, ...]) -> dict[str, str]:
    """Read KEY=VALUE options.

    Args:
        option: The option's name, for messages.
        values: What was given.

    Returns:
        Key -> value.

    Raises:
        ValueError: If one is not of that form, or a key comes twice.
    """
    read: dict[str, str] = {}
    for value in values:
        key, _, word = (part.strip() for part in value.partition("="))
        if not key or not word:
            raise ValueError(f"{option} takes KEY=VALUE, got {value!r}")
        if key in read:
            raise ValueError(f"{option} given twice for {key!r}")
        read[key] = word
    return read


def class_list(value: str | None) -> list[str] | None:
    """Read --classes: names parted by commas, or a file (`class_list.read_class_list`).

    Args:
        value: What was given.

    Returns:
        The names, or None where the option is absent. A name may come twice, which is said.

    Raises:
        ValueError: If a name is empty, two differ in outer blanks alone, or the file cannot be read
            or names nothing.
    """
    from nullspace_unlearn.class_list import read_class_list
    from nullspace_unlearn.words import check_names

    if value is None:
        return None
    path = Path(value)
    is_path = "," not in value and (path.suffix or os.sep in value or "/" in value)
    if is_path or (value and _is_there(path)):
        names = read_class_list(path)
    else:
        names = [name.strip() for name in value.split(",")]
    check_names("class", tuple(dict.fromkeys(names)))
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        warnings.warn(
            f"several classes are called {', '.join(twice)}: they stay or go together",
            stacklevel=2,
        )
    return names


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # longer than a name can be, or with a null byte
        return False


def load_model(
    model: str, pretrained: str | None, device: str, precision: str, base: str | None = None
) -> Clip:
    """Load a model without open_clip's own chatter."""
    logging.getLogger().setLevel(logging.ERROR)
    from nullspace_unlearn.clip import load

    return load(model, pretrained, device=device, precision=precision, base=base)


@dataclass(frozen=True)
class ModelOptions:
    """The options of `model_options` and `device_options`, as given."""

    model: str | None
    pretrained: str | None
    device: str
    precision: str

    @property
    def name(self) -> str:
        """What is loaded: the bundled model where none is named."""
        return BUNDLED if self.model is None else self.model

    def load(self, base: str | None = None) -> Clip:
        """Load the model.

        Args:
            base: The model that a folder of visual prompts is for.

        Raises:
            ValueError: As `clip.load`.
        """
        return load_model(self.name, self.pretrained, self.device, self.precision, base)


which_model: Decorator = gathered("which", ModelOptions)
"""Gathers `model_options` and `device_options`, which keep their places in the help."""


def command_line(words: Sequence[str]) -> str:
    """A command line for the record: what lies elsewhere by its own name, as where is private.

    Args:
        words: What was typed behind the program's name.
    """
    told = (
        "".join(Path(part).name if Path(part).is_absolute() else part for part in parts)
        for parts in (re.split("([=:,])", word) for word in words)
    )
    return shlex.join(["nsu", *told])


def made_by(clip: Clip) -> dict[str, Any]:
    """The command line, and the versions that a report rests on.

    Args:
        clip: The model, for the device it is on.
    """
    from nullspace_unlearn.fingerprint import machine
    from nullspace_unlearn.version import __version__

    return {
        "command": command_line(sys.argv[1:]),
        "versions": {"nullspace-unlearn": __version__, **machine(clip.device)},
    }


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))
