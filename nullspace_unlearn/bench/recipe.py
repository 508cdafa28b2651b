"""`Recipe`: which model, data, requests, methods, seeds and metrics a benchmark is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

from nullspace_unlearn import erasers, train
from nullspace_unlearn.edit import Space
from nullspace_unlearn.evaluate.figures import FIGURES
from nullspace_unlearn.forget import Paradigm
from nullspace_unlearn.spelling import instead, listed
from nullspace_unlearn.strict import read_yaml
from nullspace_unlearn.unlearn import MAX_STRENGTH
from nullspace_unlearn.words import check_template

METRICS = (
    "left", "over", "cost", "balance", "named_2", "named_10", "named_all", "found", "forgotten",
    "same_class", "same_domain", "rest", "kept", "worst_kept", "kept_search", "h4",
    "seconds",
)  # fmt: skip
"""The figures that tables show where a recipe does not say, in their order; files hold all."""


@dataclass(frozen=True)
class Model:
    """The model.

    Attributes:
        name: As for `load`; a relative local-dir: path is looked for below the data root.
        pretrained: Tag or weights file, for an open_clip name.
        templates: Class templates in place of the model folder's or the default ones.
    """

    name: str
    pretrained: str | None = None
    templates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for template in self.templates:
            check_template(template, ("class",))


@dataclass(frozen=True)
class Bundled:
    """The bundled pictures.

    Attributes:
        each: Pictures a cell that are reported on.
        where: Where the data are to be had, for the reader; nothing here.
    """

    kind: ClassVar[str] = "bundled"
    each: int = 20
    where: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        """What must be below the data root."""
        return ()


@dataclass(frozen=True)
class Folder:
    """Images `path/<domain>/<class>/*`.

    Attributes:
        path: The folder, below the data root.
        report: Files that list the images reported on: a path or a pattern such as
            "pacs/splits/*_test.txt"; lines are domain/class/file, a label behind it passed over.
        draw: Files that list those that methods may be given.
        held_out: Share of each cell's images that is reported on where there are no such files; the
            others may be given to methods.
        each: At most so many images a cell are reported on; 0: all.
        domains: Only these; absent: all there are.
        domain_words: Domain folder -> the word prompts use for it.
        where: Where the data are to be had and how they lie.
    """

    kind: ClassVar[str] = "folder"
    path: str
    report: str = ""
    draw: str = ""
    held_out: float = 0.0
    each: int = 0
    domains: tuple[str, ...] = ()
    domain_words: Mapping[str, str] = field(default_factory=dict)
    where: str = ""

    def __post_init__(self) -> None:
        _share(self.held_out)

    @property
    def paths(self) -> tuple[str, ...]:
        """What must be below the data root."""
        listed = () if self.held_out else tuple(p for p in (self.report, self.draw) if p)
        return (self.path, *listed)


@dataclass(frozen=True)
class Domains:
    """Folders of classes `path/<class>/*`, one for each domain; WordNet numbers get their names.

    Attributes:
        folders: Domain -> its folder, below the data root.
        common: Whether classes that some domain lacks are left out.
        held_out: As for a folder.
        each: As for a folder.
        domain_words: Domain -> the word prompts use for it.
        where: Where the data are to be had and how they lie.
    """

    kind: ClassVar[str] = "domains"
    folders: Mapping[str, str]
    common: bool = False
    held_out: float = 0.0
    each: int = 0
    domain_words: Mapping[str, str] = field(default_factory=dict)
    where: str = ""

    def __post_init__(self) -> None:
        _share(self.held_out)
        if not self.folders:
            raise ValueError("folders names no domain")

    @property
    def paths(self) -> tuple[str, ...]:
        """What must be below the data root."""
        return tuple(self.folders.values())


@dataclass(frozen=True)
class Sets:
    """Several data sets `path/<class>/*`, each with its own list of classes.

    Attributes:
        sets: Data set -> its folder, below the data root.
        held_out: As for a folder.
        each: As for a folder, a class.
        where: Where the data are to be had and how they lie.
    """

    kind: ClassVar[str] = "sets"
    sets: Mapping[str, str]
    held_out: float = 0.0
    each: int = 0
    where: str = ""

    def __post_init__(self) -> None:
        _share(self.held_out)
        if len(self.sets) < 2:
            raise ValueError("sets names fewer than two data sets: use kind folder or domains")

    @property
    def paths(self) -> tuple[str, ...]:
        """What must be below the data root."""
        return tuple(self.sets.values())


@dataclass(frozen=True)
class Cifar:
    """CIFAR-10 or CIFAR-100, the binary version: test images are reported on, others drawn.

    Attributes:
        path: The folder with data_batch_*.bin or train.bin, below the data root.
        each: At most so many images a class are reported on; 0: all.
        where: Where the data are to be had and how they lie.
    """

    kind: ClassVar[str] = "cifar"
    path: str
    each: int = 0
    where: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        """What must be below the data root."""
        return (self.path,)


@dataclass(frozen=True)
class FeatureFile:
    """Embeddings with labels and text prototypes: no model is needed, and none is read.

    Attributes:
        path: The file, as `read_features` takes it, below the data root.
        where: Where the data are to be had and how they lie.
    """

    kind: ClassVar[str] = "features"
    path: str
    where: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        """What must be below the data root."""
        return (self.path,)


Data = Bundled | Folder | Domains | Sets | Cifar | FeatureFile


@dataclass(frozen=True)
class Request:
    """What is forgotten, one choice at a time.

    Attributes:
        kind: "global": classes everywhere; "cell": classes in one domain; "domain": whole domains.
        choose: "each": every choice of `size` there is; "together": all that is listed, at once; a
            number: so many random ones.
        size: Classes (domains, where whole ones go) that go at once.
        seed: Of the random choices.
        classes: Choose among these; absent: all.
        domains: Choose among these; absent: all.
        dataset: Which of several data sets the classes are of.
    """

    kind: Paradigm
    choose: Literal["each", "together"] | int = "each"
    size: int = 1
    seed: int = 0
    classes: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    dataset: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.choose, int) and self.choose < 1:
            raise ValueError(f"choose must be each, together or a number from 1, got {self.choose}")
        if self.size < 1 or self.seed < 0:
            raise ValueError(f"size must be from 1 and seed from 0, got {self.size}, {self.seed}")
        if self.kind == "global" and self.domains:
            raise ValueError("a global request forgets classes everywhere: leave out domains")
        if self.kind == "domain" and self.classes:
            raise ValueError("a domain request forgets every class there: leave out classes")
        needed = {"global": ("classes",), "cell": ("classes", "domains"), "domain": ("domains",)}
        lists = [name for name in needed[self.kind] if not getattr(self, name)]
        if self.choose == "together" and lists:
            raise ValueError(f"choose: together takes all that is listed: give {lists[0]}")


@dataclass(frozen=True)
class Entry:
    """A row of the table: a closed form or a trained method, with its numbers.

    Attributes:
        name: One of `erasers.METHODS` or `train.METHODS`.
        label: What the table calls it; absent: made from the rest.
        prototypes: What shows a closed form how images look: "text" alone, "closed" (prompts moved
            to where images lie), "pixels" (pictures made from the model), "images" (real ones).
        space: What a closed form reads: embedding, hidden, mlp or value.
        side: The tower a closed form edits; absent: the first that the method is for.
        strength: Of a closed form.
        shots: Images a cell that it is given, where it is given any.
        validation: Further ones that a trained method chooses its best epoch by.
        set: Numbers of the method, by name.
        by_kind: Kind of request -> further numbers there.
        kinds: The kinds of request it is run on; absent: all it takes.
    """

    name: str
    label: str = ""
    prototypes: Literal["text", "closed", "pixels", "images"] = "text"
    space: Space = "embedding"
    side: Literal["visual", "text"] | None = None
    strength: float = 1.0
    shots: int = 8
    validation: int = 4
    set: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    by_kind: Mapping[str, Mapping[str, str | int | float | bool]] = field(default_factory=dict)
    kinds: tuple[Paradigm, ...] = ()

    def __post_init__(self) -> None:
        known = (*erasers.METHODS, *train.METHODS)
        if self.name not in known:
            raise ValueError(f"unknown method {self.name!r}; {instead(self.name, known)}")
        if self.shots < 1 or self.validation < 0:
            raise ValueError(
                f"shots must be from 1 and validation from 0, got {self.shots}, {self.validation}"
            )
        (self._check_trained if self.trained else self._check_closed)()
        able = self.paradigms
        if wrong := [kind for kind in (*self.kinds, *self.by_kind) if kind not in able]:
            raise ValueError(f"{self.name} takes requests of kind {listed(able)}, not {wrong[0]}")
        object.__setattr__(self, "label", self.label or self._made_label())

    @property
    def trained(self) -> bool:
        """Whether it is a trained method."""
        return self.name in train.METHODS

    @property
    def drawn(self) -> bool:
        """Whether it is given images, so that another seed gives another result."""
        return self.trained or self.prototypes == "images"

    @property
    def paradigms(self) -> tuple[Paradigm, ...]:
        """The kinds of request that the method is for."""
        if self.trained:
            return train.METHODS[self.name].paradigms
        return erasers.METHODS[self.name].paradigms

    def takes(self, kind: Paradigm) -> bool:
        """Whether it is run on requests of a kind."""
        return kind in (self.kinds or self.paradigms)

    def numbers(self, kind: str) -> dict[str, str | int | float | bool]:
        """Numbers on a kind of request."""
        return {**self.set, **self.by_kind.get(kind, {})}

    def resolved(self, kind: str) -> dict[str, Any]:
        """All of the method's numbers on a kind of request, its own where none is given."""
        if self.trained:
            return asdict(train.configure(self.name, self.texts(kind)))  # type: ignore[call-overload]
        own = erasers.METHODS[self.name]
        return asdict(own.numbers(**own.checked(self.numbers(kind))))

    def texts(self, kind: str) -> dict[str, str]:
        """The same as `train.configure` takes them."""
        said = self.numbers(kind)
        return {key: str(v).lower() if isinstance(v, bool) else str(v) for key, v in said.items()}

    def _check_trained(self) -> None:
        closed = ("prototypes", "space", "side", "strength")
        given = [one.name for one in fields(self)
                 if one.name in closed and getattr(self, one.name) != one.default]  # fmt: skip
        if given:
            raise ValueError(f"{self.name} is trained: {given[0]} is for closed forms")
        for kind in ("", *self.by_kind):
            train.configure(self.name, self.texts(kind))

    def _check_closed(self) -> None:
        method = erasers.METHODS[self.name]
        for kind in ("", *self.by_kind):
            method.checked(self.numbers(kind))
        if not 0 < self.strength <= MAX_STRENGTH:
            raise ValueError(f"strength must lie in (0, {MAX_STRENGTH:g}], got {self.strength}")
        object.__setattr__(self, "side", self.side or method.sides[0])
        if self.side not in method.sides:
            raise ValueError(f"{self.name} edits the {listed(method.sides)} side, not {self.side}")
        if self.prototypes != "text" and method.images == "none":
            able = [name for name, one in erasers.METHODS.items() if one.images != "none"]
            raise ValueError(f"{self.name} takes text alone; {listed(able)} take other prototypes")
        if self.space not in method.spaces:
            raise ValueError(f"{self.name} reads {listed(method.spaces)}, not {self.space}")
        if self.prototypes == "text" and (method.images == "must" or self.space != "embedding"):
            raise ValueError(f"{self.name} must be shown images here: prototypes pixels or images")

    def _made_label(self) -> str:
        said = [self.name]
        if self.prototypes != "text":
            shown = {"images": f"{self.shots} images"}
            said.append(shown.get(self.prototypes, self.prototypes))
        if self.space != "embedding":
            said.append(self.space)
        if self.strength != 1:
            said.append(f"strength {self.strength:g}")
        return ", ".join(said)


@dataclass(frozen=True)
class Recipe:
    """A benchmark.

    Attributes:
        name: What it is called.
        data: The images.
        requests: What is forgotten.
        methods: What is compared; the untouched model and the ideal are always beside.
        model: The model; none for a feature file.
        about: One sentence for the reader.
        seeds: Draws of the images that methods are given.
        metrics: What the tables show, among `figures.FIGURES`.
    """

    name: str
    data: Data
    requests: tuple[Request, ...]
    methods: tuple[Entry, ...]
    model: Model | None = None
    about: str = ""
    seeds: tuple[int, ...] = (0,)
    metrics: tuple[str, ...] = METRICS

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name:
            raise ValueError(f"name must be one word of a path, got {self.name!r}")
        for what in ("requests", "methods", "seeds", "metrics"):
            if not getattr(self, what):
                raise ValueError(f"{what} is empty")
        if len(set(self.seeds)) < len(self.seeds) or not all(0 <= s <= 999 for s in self.seeds):
            raise ValueError(f"seeds must be different numbers from 0 to 999, got {self.seeds}")
        for i, metric in enumerate(self.metrics):
            if metric not in FIGURES:
                raise ValueError(
                    f"metrics[{i}]: {metric!r} is not known; {instead(metric, FIGURES)}"
                )
        labels = [entry.label for entry in self.methods]
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise ValueError(f"two methods are labelled {twice[0]!r}: give one a label")
        if taken := {"untouched", "ideal"} & set(labels):
            raise ValueError(f"no method can be labelled {taken.pop()!r}: that row is always there")
        for entry in self.methods:
            if not any(entry.takes(request.kind) for request in self.requests):
                raise ValueError(
                    f"{entry.label} is run on requests of kind "
                    f"{listed(entry.kinds or entry.paradigms)}, and there are none"
                )
        self._check_data()

    def _check_data(self) -> None:
        kind = self.data.kind
        file = isinstance(self.data, FeatureFile)
        if file == (self.model is not None):
            raise ValueError(
                "a feature file is measured without a model: leave out model"
                if file
                else f"data of kind {kind} need a model"
            )
        for request in self.requests:
            if kind in ("sets", "cifar", "features") and request.kind != "global":
                raise ValueError(f"data of kind {kind} have no domains: requests must be global")
            if isinstance(self.data, Sets) and request.dataset not in self.data.sets:
                raise ValueError(
                    f"a request must name its dataset, one of {listed(self.data.sets)}; got "
                    f"{request.dataset!r}"
                )
            if request.dataset and not isinstance(self.data, Sets):
                raise ValueError(f"data of kind {kind} are one data set: leave out dataset")
        for entry in self.methods:
            text = not entry.trained and entry.prototypes == "text" and entry.side == "visual"
            if file and not text:
                raise ValueError(
                    f"{entry.label} needs a model, and a feature file has none: only closed forms "
                    "made from text, on the visual side, do without"
                )


def packaged() -> dict[str, Path]:
    """The recipes that come along: name -> file."""
    folder = Path(str(resources.files(__package__))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(given: str) -> Path:
    """The file of a recipe.

    Args:
        given: A path, or the name of a recipe that comes along.

    Returns:
        The file.

    Raises:
        ValueError: If there is no such file and no such name.
    """
    known = packaged()
    if Path(given).is_file():
        return Path(given)
    if given in known:
        return known[given]
    raise ValueError(
        f"{given!r} is no file and no recipe that comes along; {instead(Path(given).stem, known)}"
    )


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe, refusing all that it does not know.

    Args:
        path: The file.

    Returns:
        The recipe.

    Raises:
        ValueError: As `strict.read_yaml`, and if its parts do not go together.
    """
    return read_yaml(Recipe, path)


def _share(value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"held_out is a share from 0 to below 1, got {value}")
