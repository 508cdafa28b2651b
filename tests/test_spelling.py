"""Names that someone got wrong."""

from __future__ import annotations

import pytest

from nullspace_unlearn.spelling import did_you_mean, instead, listed, printable


def test_the_nearest_name_is_asked_for_and_none_where_none_is_near() -> None:
    known = ("hull", "gated", "nullspace")
    assert did_you_mean("gatde", known) == " (did you mean 'gated'?)"
    assert did_you_mean("qqqq", known) == ""
    assert instead("gatde", known) == "did you mean 'gated'?"
    assert instead("qqqq", known) == "allowed: hull, gated, nullspace"


@pytest.mark.parametrize(("names", "most"), [(("a", "b"), 2), (("a", "b", "c"), 2), ((), 2)])
def test_a_long_list_is_cut_and_counted(names: tuple[str, ...], most: int) -> None:
    said = listed(iter(names), most)
    assert said.startswith(", ".join(names[:most]))
    assert (f"({len(names)} in all)" in said) == (len(names) > most)


def test_printable_spells_out_what_steers_a_terminal_and_nothing_else() -> None:
    plain = "Straßenbahn 🚋 👩\u200d🚀 電車 é a|b <b> \\n"
    assert printable(plain) == plain
    assert printable("a\x1b[31m\n\t\x9b\u2028\u202e\udcff") == (
        r"a\x1b[31m\n\t\x9b\u2028\u202e\udcff"
    )
