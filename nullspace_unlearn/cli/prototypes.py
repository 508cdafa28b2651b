"""`nsu prototypes`: pictures that stand for cells to the model, to look at and to use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nullspace_unlearn.cli import options
from nullspace_unlearn.cli.data import class_word_option, said

if TYPE_CHECKING:
    from nullspace_unlearn.data.source import Source
    from nullspace_unlearn.report.prototypes import Written

_MOST_LINES = 40


@dataclass(frozen=True)
class PictureOptions:
    """The options of `picture_options`, as given."""

    class_: tuple[str, ...]
    domain: tuple[str, ...]
    each: int
    seed: int
    classes: str | None
    domain_word: tuple[str, ...]
    class_word: tuple[str, ...]
    template: tuple[str, ...]
    against: str | None
    batch_size: int

    def settings(self, quiet: bool) -> dict[str, Any]:
        """What `write_prototypes` is to make, looked at before a model is loaded.

        Args:
            quiet: Whether to say nothing of how real images were read.

        Raises:
            ValueError: If a name or template cannot be one, or the real images cannot be used.
        """
        from nullspace_unlearn.prototypes import Synthesis
        from nullspace_unlearn.words import check_names, check_template

        check_names("class", self.class_)
        check_names("domain", self.domain)
        for text in self.template:
            check_template(text, ("class", "domain"))
        words = options.pairs("--domain-word", self.domain_word)
        return {
            "classes": self.class_,
            "domains": self.domain,
            "vocabulary": options.class_list(self.classes),
            "domain_words": words,
            "templates": self.template,
            "synthesis": Synthesis(each=self.each, seed=self.seed, batch_size=self.batch_size),
            "real": None if self.against is None else self._real(self.against, words, quiet),
        }

    def _real(self, against: str, words: Mapping[str, str], quiet: bool) -> Source:
        from nullspace_unlearn.data.find import open_source

        given = options.pairs("--class-word", self.class_word)
        source = open_source(against, domain_words=words, class_words=given)
        if source.features is not None:
            raise ValueError("--against are images, and a feature file holds none: give images")
        return source if quiet else said(source)


picture_options = options.gathered(
    "pictures",
    PictureOptions,
    click.option("--class", "class_", multiple=True, metavar="NAME", help="Absent: every class."),
    click.option("--domain", multiple=True, metavar="NAME", help="Absent: every domain."),
    click.option(
        "--each",
        default=4,
        show_default=True,
        type=click.IntRange(1),
        help="Pictures of each cell.",
    ),
    click.option("--seed", default=0, show_default=True, type=click.IntRange(0)),
    click.option(
        "--classes",
        metavar="A,B,C|FILE",
        help="All class names: a list, or a file with one a line. Absent: the model folder's own.",
    ),
    click.option(
        "--domain-word",
        multiple=True,
        metavar="FOLDER=WORD",
        help="The word that prompts use for a domain: art_painting=painting.",
    ),
    class_word_option,
    click.option(
        "--template",
        multiple=True,
        metavar="TEXT",
        help='Prompt template such as "a {domain} of a {class}."; several are averaged.',
    ),
    click.option(
        "--against",
        metavar="ROOT",
        help="Say how near they come to real images, of any kind that evaluate takes.",
    ),
    click.option("--batch-size", default=32, show_default=True, type=click.IntRange(1)),
)


@click.command()
@options.model_options
@picture_options
@click.option("--output", required=True, metavar="DIR", help="Folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@options.cache_options
@options.device_options
@options.output_options
def prototypes(
    model: str,
    pretrained: str | None,
    pictures: PictureOptions,
    output: str,
    overwrite: bool,
    cache: str | None,
    no_cache: bool,
    device: str,
    precision: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Make pictures that stand for cells, from the model alone, by ascent on the pixels.

    \b
    nsu prototypes --output DIR                              every cell
    nsu prototypes --class car --domain sketch --output DIR  one

    A cell is what sets it apart from all the others, so all are made, and those asked for written:
    DIR/<domain>/<class>/*.png, sheet.png to look at, features.safetensors, prototypes.json. Made
    pictures are cached; an interrupted call takes up where it stopped.
    """  # noqa: D301
    from nullspace_unlearn.report.prototypes import write_prototypes

    options.claim(overwrite, output)
    settings = pictures.settings(quiet)
    written = write_prototypes(
        options.load_model(model, pretrained, device, precision),
        Path(output),
        **settings,
        cache=options.cache_folder(cache, no_cache),
        overwrite=overwrite,
        quiet=quiet or as_json,
    )
    if as_json:
        options.print_json({"output": output, **written.facts})
    elif not quiet:
        click.echo(_report(written, output))


def _report(written: Written, output: str) -> str:
    from nullspace_unlearn.report.prototypes import FACTS, SHEET
    from nullspace_unlearn.report.sheet import cell_lines

    facts, made = written.facts, written.pictures
    lines = cell_lines(facts["cells"][:_MOST_LINES])
    if (rest := len(facts["cells"]) - len(lines)) > 0:
        lines.append(f"and {rest} more cells, in {FACTS}")
    if facts["nearness"] is not None:
        for space, what in (("embedding", "embeddings"), ("hidden", "hidden features")):
            near = facts["nearness"][space]
            lines.append(
                f"nearness of {what} to {facts['nearness']['images']}: cosine {near['cosine']:.3f}"
                f", rank {near['rank']:.2f}, domain transfer {near['domain_transfer']:.3f}, "
                f"class transfer {near['class_transfer']:.3f}"
            )
    if (warning := made.warning()) is not None:
        lines.append(warning)
    lines.append(f"Wrote {len(made.images)} pictures and {SHEET} to {output}")
    return "\n".join(lines)
