"""Files of class names: what each form gives, and what is no such file."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest

from nullspace_unlearn.class_list import read_class_list
from nullspace_unlearn.words import check_names, same_name

NAMES = ["tench", "great white shark", "café", "2012 Tesla Model S", "hen, or cock"]
LETTERS = ["tench", "hen, or cock", "café"]  # a name after a number begins with no digit
FORMS = {
    "lines": "\n".join(NAMES),
    "with blank lines and blanks": "\r\n\r\n".join(f"  {name} " for name in NAMES),
    "a JSON list": json.dumps(NAMES),
    "an indented JSON list": json.dumps(NAMES, indent=4),
    "a JSON object": json.dumps(dict(enumerate(NAMES))),
    "a JSON object, out of order": json.dumps({str(i): NAMES[i] for i in (4, 2, 0, 1, 3)}),
    "ImageNet's object": json.dumps({i: [f"n0000000{i}", n] for i, n in enumerate(NAMES)}),
    "names to numbers": json.dumps({name: i for i, name in enumerate(NAMES)}, indent=1),
    "CoOp's": "\n".join(f"n0000000{i} {name}" for i, name in enumerate(LETTERS)),
    "a CSV": "label,class_name\n" + "".join(f'{i},"{name}"\n' for i, name in enumerate(NAMES)),
    "a CSV by semicolons": "Name; id\n" + "".join(f"{name}; {i}\n" for i, name in enumerate(NAMES)),
    "a CSV of one column": "class_name\n" + "".join(f'"{name}"\n' for name in NAMES),
}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_names(form: str, mark: bytes, tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes(mark + FORMS[form].encode())
    assert read_class_list(tmp_path / "names") == (LETTERS if form == "CoOp's" else NAMES)


NONE = {
    "numbers of some": ("n01440764 tench\ngoldfish", "line 1 begins with a WordNet number"),
    "numbers alone": ("car\nn01443537", "line 2 begins with a WordNet number"),
    "a CSV of numbers": ("id,label\n0,3\n1,4", "no column of its header holds names: 'id,label'"),
    "a CSV of other things": ("wnid,n\nn01440764,3", "no column of its header holds names"),
    "a CSV with a hole": ("id,name\n0,tench\n1,", "no column of its header holds names"),
    "a CSV that is cut": ("id,name\n0,tench\n1", "line 3 has 1 columns, and its header 2"),
    "nothing but a header": ("id,name\n", "names no classes"),
    "columns": ("tench\t0\ngoldfish\t1", "line 1 has columns"),
    "numbered lines": ("0 tench\n1 goldfish", "its lines are numbered: '0 tench'"),
    "numbered from 1": ("1. tench\n2. goldfish", "its lines are numbered"),
    "quoted lines": ('"tench",\n"goldfish"', 'line 1 begins with "'),
    "Python": ("['tench', 'goldfish']", "it begins like JSON, and is none"),
    "half a list": ('[\n"tench",', "it begins like JSON, and is none"),
    "a list of lists": ('[["tench"]]', "it holds more than names"),
    "an object of other keys": ('{"a": "tench"}', "the keys of its object are no numbers"),
    "nested too deep": ("[" * 100_000, "class list"),
    "nothing": (" \n\n", "names no classes"),
    "no UTF-8": (b"caf\xe9", "cannot be read: it is no UTF-8 text"),
}


@pytest.mark.parametrize("kind", NONE)
def test_what_is_no_list_of_names_is_refused(kind: str, tmp_path: Path) -> None:
    text, message = NONE[kind]
    (tmp_path / "names").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        read_class_list(tmp_path / "names")


def test_only_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path, "it is a folder, and no file"),
        (tmp_path / "pipe", "it is a pipe or a device"),
        ("/dev/zero", "it is a pipe or a device"),
        (tmp_path / "no", "No such file"),
        ("a\0b", "null"),
    ):
        with pytest.raises(ValueError, match=message):
            read_class_list(path)


@pytest.mark.parametrize(
    "twin",
    [
        "CAFÉ au lait",
        "café  au lait ",
        unicodedata.normalize("NFD", "café au lait"),
        "ｃａｆé au lait",
        "café\u00a0au lait",
    ],
)
def test_spellings_of_one_name_are_one(twin: str) -> None:
    assert twin != "café au lait" and same_name(twin) == same_name("café au lait")
    with pytest.raises(ValueError, match="class named twice"):
        check_names("class", ("café au lait", "dog", twin))
    check_names("class", ("café au lait", "dog", "cafe au lait"))  # the control: another word
