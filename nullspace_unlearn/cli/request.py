"""What to forget, as options: --class, --domain and all that says how."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nullspace_unlearn.cli import completion
from nullspace_unlearn.cli.options import MethodOption, class_list, gathered, pairs

if TYPE_CHECKING:
    from nullspace_unlearn.clip import Clip
    from nullspace_unlearn.data.source import Source
    from nullspace_unlearn.edit import Side
    from nullspace_unlearn.forget import Forget
    from nullspace_unlearn.plans import Plan
    from nullspace_unlearn.words import Words


@dataclass(frozen=True)
class CellOptions:
    """The options of `cell_options`, as given: which cells go, and how prompts name them."""

    class_: tuple[str, ...]
    domain: tuple[str, ...]
    all_classes: bool
    template: tuple[str, ...]
    domain_word: tuple[str, ...]

    def forget(
        self, keep: tuple[str, ...] = (), aliases: Mapping[str, tuple[str, ...]] | None = None
    ) -> Forget:
        """The request.

        Args:
            keep: Further names that must stay.
            aliases: Forgotten class -> further names of it.

        Raises:
            ValueError: If options contradict each other, or ask for nothing.
        """
        from nullspace_unlearn.forget import Forget

        if self.all_classes and self.class_:
            raise ValueError("--all-classes forgets every class: leave out --class, or it")
        if self.all_classes and not self.domain:
            raise ValueError("--all-classes needs --domain: a model cannot forget everything")
        if not self.class_ and not self.all_classes:
            if self.domain:
                raise ValueError(
                    "--domain needs --class, or --all-classes to forget the whole domain"
                )
            raise ValueError("nothing to forget: give --class, --domain, or both")
        return Forget(self.class_, self.domain, keep, aliases or {})

    def domain_words(self) -> dict[str, str]:
        """Domain -> word, as --domain-word says.

        Raises:
            ValueError: If one is malformed or given twice.
        """
        return pairs("--domain-word", self.domain_word)

    def resolve(self, clip: Clip, data: Source) -> tuple[Forget, Words]:
        """The request and its words where the data say which classes and domains there are.

        Args:
            clip: The model.
            data: The images.

        Returns:
            The request, its domains by key, and the words: classes and domains in the data's order.

        Raises:
            ValueError: If the request or --domain-word names what the data lacks.
        """
        from nullspace_unlearn.plans import with_domain_keys
        from nullspace_unlearn.words import Words

        own = clip.words or Words()
        words = Words(
            classes=data.classes,
            domains=_domain_words(clip, data.words, self.domain_words()) or {},
            class_templates=self.template or data.templates or own.class_templates,
            cell_templates=own.cell_templates,
        )
        forget = with_domain_keys(self.forget(), words)
        forget.mask(words.classes, tuple(words.domains))  # which refuses unknown names
        return forget, words


@dataclass(frozen=True)
class RequestOptions:
    """The options of `request_options`, as given."""

    cells: CellOptions
    keep: tuple[str, ...]
    alias: tuple[str, ...]
    classes: str | None
    method: str | None
    strength: float
    depth: float | None
    side: Side
    wordings: bool | None
    hyponyms: bool

    @property
    def numbers(self) -> dict[str, float]:
        """The method's numbers that were given, by name."""
        return {} if self.depth is None else {"depth": self.depth}

    def forget(self) -> Forget:
        """The request.

        Raises:
            ValueError: If options contradict each other, or ask for nothing.
        """
        aliases: dict[str, tuple[str, ...]] = {}
        for text in self.alias:
            owner, sign, name = (part.strip() for part in text.partition("="))
            if not sign:
                if len(self.cells.class_) != 1:
                    raise ValueError(f"--alias {text!r}: say whose, as CLASS={text}")
                owner, name = self.cells.class_[0], text.strip()
            aliases[owner] = (*aliases.get(owner, ()), name)
        return self.cells.forget(self.keep, aliases)

    def domain_words(self) -> dict[str, str]:
        """Domain -> word, as --domain-word says."""
        return self.cells.domain_words()

    def plan(self, clip: Clip, data: Source | None, images: bool = False) -> Plan:
        """Resolve the request against a model.

        Class names come from --classes, the model's folder, the data, in that order. Domains are
        the data's, if it has any; their words come from --domain-word, the model's folder, the
        data.

        Args:
            clip: The model.
            data: The images reported on, or those that prototypes are made of; None: neither.
            images: As for `plans.plan`.

        Raises:
            ValueError: As `plans.plan`; and if --domain-word names a domain the data lacks, or
                --hyponyms finds no name.
        """
        from nullspace_unlearn.plans import plan

        names = class_list(self.classes)
        if names is None and clip.words is None:
            names = list(data.classes) if data and data.classes else None
        forget = self.forget()
        if self.hyponyms:
            forget = _with_hyponyms(forget, names or (clip.words.classes if clip.words else ()))
        return plan(
            clip,
            forget,
            classes=names,
            domains=_domain_words(clip, data.words if data else {}, self.domain_words()),
            templates=self.cells.template or (data.templates if data else ()) or None,
            method=self.method,
            side=self.side,
            images=images,
            wordings=self.wordings,
        )


cell_options = gathered(
    "cells",
    CellOptions,
    click.option(
        "--class",
        "class_",
        multiple=True,
        metavar="NAME",
        shell_complete=completion.classes,
        help="Class to forget.",
    ),
    click.option(
        "--domain",
        multiple=True,
        metavar="NAME",
        shell_complete=completion.domains,
        help="Forget it there only; absent: everywhere.",
    ),
    click.option("--all-classes", is_flag=True, help="With --domain: forget the whole domain."),
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
)


request_options = gathered(
    "request",
    RequestOptions,
    cell_options,
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
    click.option("--method", cls=MethodOption, told="absent: by the request."),
    click.option("--strength", default=1.0, show_default=True, help="1 is the edit as derived."),
    click.option(
        "--depth",
        type=float,
        help="A class everywhere: from 0, its name wins in no list of all names that stay, to 1, "
        "its name says nothing about an image (hull and two_sided; absent: 1).",
    ),
    click.option(
        "--side",
        type=click.Choice(["visual", "text"]),
        default="visual",
        show_default=True,
        help="The tower whose final projection changes.",
    ),
    click.option(
        "--wordings/--no-wordings",
        default=None,
        help="A class everywhere: in other words too (80 templates, plurals). Absent: where fewer "
        "names stay than the model has dimensions.",
    ),
    click.option(
        "--hyponyms",
        is_flag=True,
        help="Forget with each class the names that WordNet has below it (puppy, below dog), less "
        "those of the class list.",
    ),
)


def default_name(model: str, forget: Forget, *behind: str) -> str:
    """Name of the output folder where none is given: after the model and the request.

    Args:
        model: The model's name.
        forget: The request.
        *behind: What else the name says.
    """
    folder = Path(model.removeprefix("local-dir:"))
    # "." says nothing of a folder, and a leading dot would hide the output.
    name = folder.resolve().name if folder.is_dir() else re.split(r"[/:]", model.rstrip("/"))[-1]
    parts = [
        name.lstrip(".") or "model",
        "without",
        *(forget.classes or ("all",)),
        *forget.domains,
        *behind,
    ]
    full = "-".join(re.sub(r"[^\w.-]+", "_", part) for part in parts)
    return full.encode()[:100].decode(errors="ignore")  # file systems limit the bytes of a name


def _with_hyponyms(forget: Forget, classes: Sequence[str]) -> Forget:
    """The request, the names below each forgotten class among its aliases.

    Raises:
        ValueError: If there are none; says what brings them.
    """
    from nullspace_unlearn.audit.lexicon import EXTRA, related
    from nullspace_unlearn.words import same_name

    taken = {same_name(name) for name in (*classes, *forget.names, *forget.keep)}
    aliases, joined = dict(forget.aliases), 0
    for name in forget.classes:
        below = [n for n in related(name).get("narrower", ()) if same_name(n) not in taken]
        taken |= {same_name(n) for n in below}
        joined += len(below)
        if below:
            aliases[name] = (*aliases.get(name, ()), *below)
    if not joined:
        what = ", ".join(map(repr, forget.classes)) or "a whole domain"
        raise ValueError(f"--hyponyms: WordNet has no further name below {what}; it needs {EXTRA}")
    return replace(forget, aliases=aliases)


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


def warn_of_domains(clip: Clip, plan: Plan, names: int = 12) -> None:
    """Warn of forgotten domains that the text tower hardly tells from others: misspelt, say.

    Args:
        clip: The model.
        plan: The request.
        names: How many classes' prompts are looked at.
    """
    import warnings

    from nullspace_unlearn.prototypes import cell_prototypes
    from nullspace_unlearn.prototypes.text import hardly_told

    domains, words = tuple(plan.words.domains), tuple(plan.words.domains.values())
    if not plan.forget.domains or len(domains) < 3:
        return
    cells = cell_prototypes(clip, plan.words.classes[:names], words, plan.words.cell_templates)
    for i, other in hardly_told(cells):
        if domains[i] in plan.forget.domains:
            warnings.warn(
                f"the model hardly tells the domain {words[i]!r} from {words[other]!r} by its "
                "prompts: is the word right? --domain-word gives another",
                stacklevel=2,
            )
