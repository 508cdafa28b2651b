"""Options that several commands share, and what becomes of them.

The library is imported inside functions here and in the commands: open_clip takes seconds to
import, which `nsu --help` and a mistyped option need not wait for.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from nullspace_unlearn.clip import Clip
    from nullspace_unlearn.edit import Side
    from nullspace_unlearn.evaluate.features import Features
    from nullspace_unlearn.forget import Forget
    from nullspace_unlearn.unlearn import Plan

BUNDLED = "nsu-mini"

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _all(*options: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


model_options: Callable[[_Command], _Command] = _all(
    click.option(
        "--model",
        default=BUNDLED,
        show_default=True,
        help="open_clip name, hf-hub:org/repo, local-dir:PATH, a model folder, or nsu-mini.",
    ),
    click.option("--pretrained", help="Tag or weights file, for an open_clip name."),
)

device_options: Callable[[_Command], _Command] = _all(
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:i."),
    click.option(
        "--precision",
        default="fp32",
        show_default=True,
        help="fp32, fp16, bf16, pure_fp16 or pure_bf16; edits are always derived in float64.",
    ),
)

request_options: Callable[[_Command], _Command] = _all(
    click.option("--class", "class_", multiple=True, metavar="NAME", help="Class to forget."),
    click.option(
        "--domain", multiple=True, metavar="NAME", help="Forget it there only; absent: everywhere."
    ),
    click.option("--all-classes", is_flag=True, help="With --domain: forget the whole domain."),
    click.option("--keep", multiple=True, metavar="NAME", help="A further name that must stay."),
    click.option(
        "--alias",
        multiple=True,
        metavar="[CLASS=]NAME",
        help="Another name of a forgotten class, forgotten with it.",
    ),
    click.option(
        "--classes",
        metavar="A,B,C|FILE",
        help="Names the model must go on telling apart: a list, or a file with one a line. Absent: "
        "the model folder's own, else the data's, else ImageNet's less near-synonyms.",
    ),
    click.option(
        "--template",
        multiple=True,
        metavar="TEXT",
        help='Prompt template such as "a photo of a {}."; several are averaged.',
    ),
    click.option(
        "--domain-word",
        multiple=True,
        metavar="FOLDER=WORD",
        help="The word that prompts use for a domain: art_painting=painting.",
    ),
    click.option(
        "--method", help="hull, avert, gated, nullspace, ccup or leace; absent: by the request."
    ),
)

data_options: Callable[[_Command], _Command] = _all(
    click.option(
        "--data",
        metavar="ROOT|FILE",
        help="Images root/<domain>/<class>/*, a feature file, or nsu-mini: the bundled pictures.",
    ),
    click.option("--list", "listing", metavar="FILE", help="Use only the images this file lists."),
    click.option("--batch-size", default=64, show_default=True, type=click.IntRange(1)),
    click.option("--num-workers", default=2, show_default=True, type=click.IntRange(1)),
    click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 100_000),
                 help="Which bundled pictures are drawn."),
)  # fmt: skip


def _no_bars(_: click.Context, __: click.Parameter, quiet: bool) -> bool:
    # Read by tqdm when it is imported, which no command has done while it parses.
    if quiet:
        os.environ["TQDM_DISABLE"] = "1"
    return quiet


output_options: Callable[[_Command], _Command] = _all(
    click.option("--json", "as_json", is_flag=True, callback=_no_bars,
                 help="Print JSON on stdout, and nothing else."),
    click.option("--quiet", is_flag=True, callback=_no_bars, help="No progress bars, no report."),
)  # fmt: skip


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
    """Read --classes: names parted by commas, or a file with one name a line.

    Args:
        value: What was given.

    Returns:
        The names, or None where the option is absent.

    Raises:
        ValueError: If a name is empty or comes twice, or the file cannot be read or names nothing.
    """
    from nullspace_unlearn.words import check_names

    if value is None:
        return None
    path = Path(value)
    if "," not in value and (path.is_file() or path.suffix):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"class list {value!r} cannot be read: {error}") from None
        names = [line.strip() for line in lines if line.strip()]
        if not names:
            raise ValueError(f"class list {value!r} names no classes")
    else:
        names = [name.strip() for name in value.split(",")]
    check_names("class", tuple(names))
    return names


def request(
    class_: tuple[str, ...],
    domain: tuple[str, ...],
    all_classes: bool,
    keep: tuple[str, ...],
    alias: tuple[str, ...],
) -> Forget:
    """The request that the options make.

    Raises:
        ValueError: If they contradict each other, or ask for nothing.
    """
    from nullspace_unlearn.forget import Forget

    if all_classes and class_:
        raise ValueError("--all-classes forgets every class: leave out --class, or it")
    if all_classes and not domain:
        raise ValueError("--all-classes needs --domain: a model cannot forget everything")
    if not class_ and not all_classes:
        if domain:
            raise ValueError("--domain needs --class, or --all-classes to forget the whole domain")
        raise ValueError("nothing to forget: give --class, --domain, or both")
    aliases: dict[str, tuple[str, ...]] = {}
    for text in alias:
        owner, sign, name = (part.strip() for part in text.partition("="))
        if not sign:
            if len(class_) != 1:
                raise ValueError(f"--alias {text!r}: say whose, as CLASS={text}")
            owner, name = class_[0], text.strip()
        aliases[owner] = (*aliases.get(owner, ()), name)
    return Forget(class_, domain, keep, aliases)


def load_model(model: str, pretrained: str | None, device: str, precision: str) -> Clip:
    """Load a model without open_clip's own chatter."""
    logging.getLogger().setLevel(logging.ERROR)
    from nullspace_unlearn.clip import load

    return load(model, pretrained, device=device, precision=precision)


def find_data(
    data: str | None, listing: str | None, domain_word: Mapping[str, str], bundled: bool
) -> Any:
    """Look at the data before anything is computed.

    Args:
        data: The --data option.
        listing: The --list option.
        domain_word: Domain folder -> word.
        bundled: Whether the bundled pictures are the default.

    Returns:
        An image set, features read from a file, the string "nsu-mini", or None.

    Raises:
        ValueError: If the data cannot be used.
    """
    from nullspace_unlearn.data.folders import find_images
    from nullspace_unlearn.evaluate.features import read_features

    if data is None or data == BUNDLED:
        if listing is not None:
            raise ValueError("--list names images of a folder: give --data ROOT")
        return BUNDLED if data == BUNDLED or bundled else None
    if Path(data).is_file():
        if listing is not None:
            raise ValueError("--list names images of a folder, and --data is a file")
        return read_features(data)
    return find_images(data, domain_word, listing)


def embed_data(
    clip: Clip, data: Any, batch_size: int, workers: int, seed: int, quiet: bool
) -> Features:
    """Features of what `find_data` found, under a model.

    Raises:
        ValueError: If the data cannot be embedded, or a feature file has another dimension.
    """
    from nullspace_unlearn.evaluate.features import Features, embed
    from nullspace_unlearn.evaluate.pictures import embed_pictures

    if isinstance(data, Features):
        if data.embeddings.shape[-1] != clip.dim:
            raise ValueError(
                f"the features have {data.embeddings.shape[-1]} dimensions and the model "
                f"{clip.dim}: they are not of this model"
            )
        return data
    if data == BUNDLED:
        return embed_pictures(clip, seed=seed, batch_size=batch_size, quiet=quiet)
    found = embed(clip, data, batch_size=batch_size, workers=workers, quiet=quiet)
    skipped = found.provenance["skipped"]
    if skipped:
        named = ", ".join(f"{one['file']} ({one['reason']})" for one in skipped[:5])
        more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        click.echo(f"nsu: skipped {len(skipped)} files: {named}{more}", err=True)
    return found


def data_names(data: Any) -> tuple[tuple[str, ...] | None, dict[str, str]]:
    """Class names and domain words that the data brings along."""
    from nullspace_unlearn.data import mini
    from nullspace_unlearn.data.folders import ImageSet
    from nullspace_unlearn.evaluate.features import Features

    if isinstance(data, ImageSet):
        return data.classes, dict(zip(data.domains, data.domain_words, strict=True))
    if isinstance(data, Features):
        return data.class_names or None, {name: name for name in data.domain_names}
    if data == BUNDLED:
        return mini.CLASSES, {name: name for name in mini.DOMAINS}
    return None, {}


def make_plan(
    clip: Clip,
    forget: Forget,
    data: Any,
    classes: str | None,
    template: tuple[str, ...],
    domain_word: Mapping[str, str],
    method: str | None,
    side: Side,
) -> Plan:
    """Resolve the request.

    Class names come from --classes, the model's folder, the data, in that order. Domains are the
    data's, if it has any; their words come from --domain-word, the model's folder, the data.

    Raises:
        ValueError: As `unlearn.plan`; and if --domain-word names a domain that the data lacks.
    """
    from nullspace_unlearn.unlearn import plan

    found, words = data_names(data)
    names = class_list(classes)
    if names is None and clip.words is None:
        names = None if found is None else list(found)
    return plan(
        clip,
        forget,
        classes=names,
        domains=_domain_words(clip, words, domain_word),
        templates=template or None,
        method=method,
        side=side,
    )


def _domain_words(
    clip: Clip, data: Mapping[str, str], given: Mapping[str, str]
) -> dict[str, str] | None:
    """Domain -> word in prompts; None where nothing but the model's folder has a say."""
    from nullspace_unlearn.prototypes import DOMAIN_WORDS

    own = clip.words.domains if clip.words else {}
    if not data:
        known = own or {word: word for word in DOMAIN_WORDS}
        return {**known, **given} if given else None
    unknown = [name for name in given if name not in data]
    if unknown:
        raise ValueError(
            f"--domain-word names {', '.join(map(repr, unknown))}, which is not among the data's "
            f"domains: {', '.join(data)}"
        )
    return {name: given.get(name, own.get(name, word)) for name, word in data.items()}


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout."""
    click.echo(json.dumps(value, indent=2, allow_nan=False))
