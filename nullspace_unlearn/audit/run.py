"""`audit`: the questions of an audit asked in order, each answer kept as it is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullspace_unlearn.audit.attacks import chosen
from nullspace_unlearn.audit.opening import Subject
from nullspace_unlearn.audit.question import NOT_MEASURED, Answer, Question, severity
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.evaluate.compare import EVERYWHERE
from nullspace_unlearn.files import (
    OutputExists,
    new_file,
    read_json,
    refuse_existing,
    refuse_strangers,
)
from nullspace_unlearn.fingerprint import Fingerprint, code_of, machine
from nullspace_unlearn.progress import progress

FORMAT = 1
RESULT = "audit.json"
RUN = "run.json"
_KIND = "nullspace-unlearn audit run 1"
_HOLDS = (RUN, RESULT, "answers", "features")
_SHOWN = 16  # characters of a hash in a file's name
_PACKAGE = "nullspace_unlearn."


@dataclass(frozen=True, eq=False)
class Audit:
    """What an audit found out.

    Attributes:
        answers: Question and answer, in the order they were asked.
        about: Plain values: what was audited, on what, by which command and versions.
    """

    answers: tuple[tuple[Question, Answer], ...]
    about: Mapping[str, Any]

    def __getitem__(self, name: str) -> Answer:
        """The answer to a question.

        Raises:
            KeyError: If it was not asked.
        """
        return {question.name: answer for question, answer in self.answers}[name]

    @property
    def verdict(self) -> str:
        """The worst of the verdicts."""
        told = [a.verdict for _, a in self.answers if a.verdict != NOT_MEASURED]
        return max(told, key=severity, default=NOT_MEASURED)

    def to_json(self) -> dict[str, Any]:
        """Plain values, the same whenever the same is audited."""
        asked = [
            {
                "name": question.name,
                "title": question.title,
                "asks": question.asks,
                "paper": question.paper,
                **answer.to_json(),
            }
            for question, answer in self.answers
        ]
        return {"format": FORMAT, **self.about, "verdict": self.verdict, "questions": asked}


def run(
    subject: Subject,
    output: Path | None = None,
    *,
    only: tuple[str, ...] = (),
    overwrite: bool = False,
    command: str = "",
    note: Callable[[Question, Answer], None] = lambda question, answer: None,
) -> Audit:
    """Ask the questions that have no answer yet.

    Args:
        subject: What is audited.
        output: Folder that features and answers are kept in, so that a run cut short goes on; it
            then holds audit.json too. None: nothing is kept.
        only: Names of the questions to ask; empty: all.
        overwrite: Whether to begin anew.
        command: The command line, for the record.
        note: Called with each question and its answer, as it is found.

    Returns:
        The answers.

    Raises:
        ValueError: If there is no such question, or the folder holds something else
            (`OutputExists`).
    """
    questions = chosen(only, subject.choices.quick)
    if output is not None:
        claim(output, subject, overwrite)
    case = None
    answers: list[tuple[Question, Answer]] = []
    for question in progress(
        questions, desc="questions", hidden=subject.choices.quiet, leave=False
    ):
        file = None if output is None else _file(output, question, subject)
        answer = None if file is None else _read(file)
        if answer is None:
            case = case or subject.case(None if output is None else output / "features")
            answer = question.answer(case)
            if file is not None:
                _write(file, answer.to_json())
        answers.append((question, answer))
        note(question, answer)
    found = Audit(tuple(answers), about(subject, command))
    if output is not None:
        _write(output / RESULT, found.to_json())
    return found


def claim(output: Path, subject: Subject, overwrite: bool) -> None:
    """Make the folder of an audit, or go on in it.

    Args:
        output: The folder.
        subject: What is audited.
        overwrite: Whether to begin anew.

    Raises:
        OutputExists: If it holds something else, or another audit while `overwrite` is false.
        ValueError: If it cannot be written to.
    """
    refuse_existing(output, overwrite=True)
    if output.is_file():
        raise OutputExists(f"output {str(output)!r} is a file; name a folder")
    facts = dict(subject.fingerprint.facts)
    if output.exists() and any(output.iterdir()):
        try:
            said = read_json(output / RUN)
            ours, same = said["kind"] == _KIND, Fingerprint(said["facts"]) == subject.fingerprint
        except (OSError, ValueError, KeyError, TypeError):
            ours = same = False
        if not ours:
            raise OutputExists(f"output {str(output)!r} exists and is no audit's; name another")
        if not same and not overwrite:
            raise OutputExists(
                f"output {str(output)!r} holds the audit of something else; name another or pass "
                "--overwrite"
            )
        if overwrite:
            refuse_strangers(output, _HOLDS, "an audit")
            (output / RESULT).unlink(missing_ok=True)
            for name in ("answers", "features"):  # never RUN: a kill locks nothing out
                shutil.rmtree(output / name, ignore_errors=True)
    (output / "features").mkdir(parents=True, exist_ok=True)
    _write(output / RUN, {"kind": _KIND, "facts": facts})


def _file(output: Path, question: Question, subject: Subject) -> Path:
    """Where an answer is kept: under all that it follows from."""
    choices = subject.choices
    device = subject.original.device if isinstance(subject.original, Clip) else "cpu"
    made_from = Fingerprint(
        {
            "subject": subject.fingerprint,
            "question": question.name,
            "quick": choices.quick,
            "seed": choices.seed,
            "draws": choices.draws,
            "machine": machine(device),
            "code": code_of("audit.opening", question.ask.__module__.removeprefix(_PACKAGE)),
        }
    )
    return output / "answers" / f"{question.name}-{made_from.digest[:_SHOWN]}.json"


def _read(file: Path) -> Answer | None:
    """An answer that is there and whole."""
    with suppress(OSError, ValueError):
        return Answer.from_json(read_json(file))
    return None


def _write(file: Path, said: Mapping[str, Any]) -> None:
    text = json.dumps(said, indent=1, allow_nan=False, ensure_ascii=False)
    with new_file(file, overwrite=True) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def about(subject: Subject, command: str = "") -> dict[str, Any]:
    """What is audited, in plain values that do not tell the time or the place.

    Args:
        subject: What is audited.
        command: The command line, for the record.
    """
    source, mask = subject.source, subject.mask
    gone = mask[source.class_index, source.domain_index]
    columns = source.domains or EVERYWHERE
    rows = mask.any(1).nonzero()[:, 0].tolist()
    there = mask.any(0).nonzero()[:, 0].tolist()
    classes, domains = [source.classes[c] for c in rows], [columns[d] for d in there]
    device = subject.original.device if isinstance(subject.original, Clip) else "cpu"
    own = code_of("audit.run")
    return {
        "command": command,
        "versions": {"nullspace-unlearn": own["version"], **machine(device)},
        "edited": _called(subject.edited),
        "original": _called(subject.original),
        "retrained": None if subject.retrained is None else _called(subject.retrained),
        "hashes": {
            "edited": _hash(subject.edited),
            "original": _hash(subject.original),
            "images": source.fingerprint.digest,
            **{f"images of {one.name}": one.fingerprint.digest for one in subject.others},
            "code": own["source"],
        },
        "request": {
            "classes": classes,
            "domains": domains,
            "words": _in_words(classes, domains, mask),
            "requests": [one.to_json() for one in subject.requests],
        },
        "data": source.name,
        "others": [one.name for one in subject.others],
        "images": {"forgotten": int(gone.sum()), "others": int((~gone).sum())},
        "seed": subject.choices.seed,
        "quick": subject.choices.quick,
    }


def _in_words(classes: list[str], domains: list[str], mask: Any) -> str:
    """What was to be forgotten, as a reader says it."""
    names = "everything" if mask.any(1).all() else ", ".join(classes)
    if bool(mask[mask.any(1)].all()):
        return f"{names} everywhere"
    return f"{names} in {', '.join(domains)}"


def _called(one: Any) -> str:
    if isinstance(one, Clip):
        name = one.source.name
        return f"{name} ({one.source.pretrained})" if one.source.pretrained else name
    return str(one.provenance.get("model") or one.provenance.get("file") or "features")


def _hash(one: Any) -> str:
    if isinstance(one, Clip) and one.source.sha256 and not one.changes:
        return one.source.sha256
    return str(one.fingerprint.digest)
