"""What a result depends on: named facts, a hash of them, and how two of them differ in words.

Whatever is kept to be used again (prompts' features, pictures, parts of a feature file, a run of
training, a trial of a benchmark, the rows of a sweep) is kept under a `Fingerprint`, and used again
only where that is the same. Each room tells its own facts: a `Clip` those of a model, a `Source`
those of images; `code_of` and `machine` tell ours and the libraries'.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass, is_dataclass
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nullspace_unlearn.files import new_file, read_json
from nullspace_unlearn.progress import progress
from nullspace_unlearn.version import __version__

# torch is imported where tensors are: facts of other things do without.
if TYPE_CHECKING:
    import torch
    from torch import Tensor

_PACKAGE = Path(__file__).parent
_LIBRARIES = ("torch", "torchvision", "open_clip_torch", "pillow", "numpy")
_IMPORTED = re.compile(r"\bnullspace_unlearn((?:\.\w+)+)(?:\s+import\s+(\([^)]*\)|[^\n]+))?")
_FROM_ROOT = re.compile(r"\bfrom\s+nullspace_unlearn\s+import\s+(\([^)]*\)|[^\n]+)")
_HEX = re.compile(r"[0-9a-f]{32,}")
_MANY = 1000  # files, from which a bar shows
_UNREADABLE = "unreadable"
_MOST_SAID = 4  # differences in a message
_LONGEST = 60  # characters of a value in a message
_BLOCK = 1 << 20
# A file system's clock ticks: a file changed this shortly before it was read may change again
# without its times telling.
_TICK_NS = 2_000_000_000
_FORMAT = "nullspace-unlearn contents 1"


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """Named facts that a result depends on.

    Attributes:
        facts: Plain JSON values by name, nested or not; fingerprints and dataclasses among them
            become plain. Tuples count as lists.

    Raises:
        ValueError: If a fact is no plain value, or is NaN or infinite.
    """

    facts: Mapping[str, Any]

    def __post_init__(self) -> None:
        try:
            text = json.dumps(self.facts, default=_plain, allow_nan=False, sort_keys=True)
        except (TypeError, ValueError) as error:
            raise ValueError(f"facts must be plain values: {error}") from None
        object.__setattr__(self, "facts", json.loads(text))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fingerprint) and self.facts == other.facts

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the facts, in hexadecimal; the order they were named in does not count."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()

    def only(self, *names: str) -> Fingerprint:
        """Some of the facts.

        Args:
            names: Their names, such as "weights" or "edits.visual"; those that are not there are
                passed over.
        """
        return Fingerprint(_chosen(self.facts, names))

    def differences(self, now: Fingerprint) -> list[str]:
        """What differs from another, a fact a line.

        Args:
            now: The other one, called "now".

        Returns:
            Lines such as `preprocessing.mean: [0.5, 0.5, 0.5], now [0.48, 0.46, 0.41]`; none where
            the two are the same.
        """
        then, here = dict(_flat(self.facts)), dict(_flat(now.facts))
        return [
            f"{name}: {_shown(then, name)}, now {_shown(here, name)}"
            for name in {**then, **here}
            if name not in then or name not in here or then[name] != here[name]
        ]


def in_words(differences: Sequence[str]) -> str:
    """Some differences on one line, the first few of many."""
    more = len(differences) - _MOST_SAID
    return "; ".join(differences[:_MOST_SAID]) + (f"; and {more} more" if more > 0 else "")


class OtherRun(ValueError):
    """What is kept of a run is of another one than is asked for, or is damaged."""


def code_of(*modules: str) -> dict[str, str]:
    """Facts of our own code: the package's version, and a hash of the source of some modules.

    The hash takes in all modules of the package that these mention, directly or by way of others,
    so that nobody has to list what a result is computed by; it leaves out the rest, so that a
    change to a plot costs no embeddings. The version alone would not do: it stays the same from one
    release to the next, however the code is worked on.

    Args:
        modules: Their names below the package, such as "prototypes.pixels".

    Returns:
        "version" and "source".

    Raises:
        ValueError: If there is no such module.
    """
    return {"version": __version__, "source": _source(modules)}


def machine(device: torch.device | str) -> dict[str, str]:
    """Facts of what computes, on which the last bits of a result depend.

    Args:
        device: Where a model is.

    Returns:
        The kind of device, and the version of each library that images and features go through.
    """
    import torch

    return {"device": torch.device(device).type, **_libraries()}


def of_tensors(tensors: Mapping[str, Tensor | None]) -> str:
    """Hash of tensors: their names, dtypes, shapes and bytes.

    Args:
        tensors: By name, on any device; None counts as absent.

    Returns:
        SHA-256 in hexadecimal.
    """
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        if value is None:
            continue
        digest.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
        flat = value.detach().reshape(-1)
        for rows in flat.split(_BLOCK) if len(flat) else ():  # it may exceed the memory
            digest.update(rows.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Hash of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


class Contents:
    """Hashes of files, which are read again only where the file system says that they changed.

    A hash is believed while size, times of last change (of contents and of entry) and inode are
    what they were, and where the file had been left alone for a while when it was read.

    Args:
        folder: Where hashes are kept for other processes, below `contents/`; None: in memory alone.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = None if folder is None else Path(folder) / "contents"
        self._known: dict[Path, dict[str, list[Any]]] = {}

    def of(self, root: Path, files: Sequence[Path]) -> list[str]:
        """Hash files.

        Args:
            root: A folder above them, by which what is known of them is kept.
            files: The files; one may come several times.

        Returns:
            SHA-256 of each, in hexadecimal; "unreadable" for one that cannot be read.
        """
        root = root.absolute()
        if root not in self._known:
            self._known[root] = self._read(root)
        known = self._known[root]
        names = {file: os.path.relpath(file.absolute(), root) for file in dict.fromkeys(files)}
        stale = [file for file, name in names.items() if known.get(name, [])[:-1] != _stat(file)]
        hidden = None if len(stale) > _MANY else True
        with (
            ThreadPoolExecutor() as pool,
            progress(
                total=len(stale), desc="hashing", unit="file", hidden=hidden, leave=False
            ) as bar,
        ):
            made = {}
            for file, entry in zip(stale, pool.map(_entry, stale), strict=True):
                made[file] = entry
                bar.update()
        settled = {names[file]: entry for file, entry in made.items() if _settled(entry)}
        known.update(settled)
        if settled:
            self._write(root, known)
        return [made[file][-1] if file in made else known[names[file]][-1] for file in files]

    def _file(self, root: Path) -> Path | None:
        name = hashlib.sha256(os.fsencode(root)).hexdigest()[:32]
        return None if self.folder is None else self.folder / f"{name}.json"

    def _read(self, root: Path) -> dict[str, list[Any]]:
        """What is kept of a folder; nothing where that is damaged."""
        file = self._file(root)
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            if file is not None:
                kept = read_json(file)
                if kept["format"] == _FORMAT and kept["root"] == str(root):
                    return {name: list(entry) for name, entry in kept["files"].items()}
        return {}

    def _write(self, root: Path, known: Mapping[str, list[Any]]) -> None:
        """Keep what is known; if that fails it is no error."""
        file = self._file(root)
        if file is None:
            return
        kept = {"format": _FORMAT, "root": str(root), "files": {**self._read(root), **known}}
        with suppress(OSError, ValueError), new_file(file, overwrite=True) as temporary:
            temporary.write_text(json.dumps(kept), encoding="utf-8")


_ACTIVE: ContextVar[Contents | None] = ContextVar("contents", default=None)
_IN_MEMORY = Contents()


@contextmanager
def kept_contents(folder: str | Path | None = None) -> Iterator[Contents]:
    """Read no file twice to hash it while this lasts, nor one that the folder knows.

    Args:
        folder: Where hashes are kept; None for memory alone.

    Yields:
        The hashes.
    """
    contents = Contents(folder)
    token = _ACTIVE.set(contents)
    try:
        yield contents
    finally:
        _ACTIVE.reset(token)


def contents_in_use() -> Contents:
    """The innermost `kept_contents` that lasts, else one that this process keeps in memory."""
    return _ACTIVE.get() or _IN_MEMORY


def _stat(file: Path) -> list[Any] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _entry(file: Path) -> list[Any]:
    """What the file system says of a file, when it was read, and its hash."""
    before = _stat(file)  # first: a change while it is read then shows
    try:
        return [*(before or []), file_sha256(file)]
    except OSError:
        return [_UNREADABLE]


def _settled(entry: Sequence[Any]) -> bool:
    return len(entry) > 1 and max(entry[1], entry[2]) + _TICK_NS < time.time_ns()


@cache
def _libraries() -> dict[str, str]:
    return {name: version(name) for name in _LIBRARIES}


@cache
def _source(modules: tuple[str, ...]) -> str:
    """Hash of modules and all they mention."""
    found: dict[str, bytes] = {}
    waiting = list(modules)
    for name in modules:
        if _file_of(name) is None:
            raise ValueError(f"there is no module {name!r} in the package")
    while waiting:
        name = waiting.pop()
        file = _file_of(name)
        if name in found or file is None:
            continue
        found[name] = file.read_bytes()
        waiting += _mentioned(found[name].decode("utf-8"))
    digest = hashlib.sha256()
    for name, source in sorted(found.items()):
        digest.update(f"{name} {len(source)} ".encode() + source)
    return digest.hexdigest()


def _file_of(name: str) -> Path | None:
    path = _PACKAGE.joinpath(*name.split("."))
    return next((f for f in (path.with_suffix(".py"), path / "__init__.py") if f.is_file()), None)


def _mentioned(source: str) -> list[str]:
    """Names below the package that a source mentions, some of them no modules."""
    found = [name for names in _FROM_ROOT.findall(source) for name in re.findall(r"\w+", names)]
    for dotted, imported in _IMPORTED.findall(source):
        parts = dotted[1:].split(".")
        # A module's packages are run before it.
        found += [".".join(parts[: i + 1]) for i in range(len(parts))]
        found += [f"{dotted[1:]}.{name}" for name in re.findall(r"\w+", imported)]
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Fingerprint):
        return dict(value.facts)
    if isinstance(value, Mapping):
        return dict(value)
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{value!r} is none")


def _chosen(facts: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for name in names:
        first, _, rest = name.partition(".")
        if first not in facts:
            continue
        value = _chosen(facts[first], [rest]) if rest else facts[first]
        chosen[first] = {**chosen.get(first, {}), **value} if rest else value
    return chosen


def _flat(facts: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _shown(facts: Mapping[str, Any], name: str) -> str:
    if name not in facts:
        return "absent"
    value = facts[name]
    if isinstance(value, str):
        text = value[:12] if _HEX.fullmatch(value) else value
    else:
        text = json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
