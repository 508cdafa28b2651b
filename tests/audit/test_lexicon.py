"""Other words for a name: from a WordNet of three words, and spellings one letter away."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nullspace_unlearn.audit.lexicon import misspelt, related

LEXICON = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE LexicalResource SYSTEM "http://globalwordnet.github.io/schemas/WN-LMF-1.0.dtd">
<LexicalResource xmlns:dc="https://globalwordnet.github.io/schemas/dc/">
  <Lexicon id="tiny" label="tiny" language="en" email="a@b.c" license="x" version="1">
    <LexicalEntry id="w1"><Lemma writtenForm="car" partOfSpeech="n"/>
      <Sense id="s0" synset="tiny-4"/><Sense id="s1" synset="tiny-1"/></LexicalEntry>
    <LexicalEntry id="w5"><Lemma writtenForm="Stephen Car" partOfSpeech="n"/>
      <Sense id="s5" synset="tiny-4"/></LexicalEntry>
    <LexicalEntry id="w2"><Lemma writtenForm="motor_car" partOfSpeech="n"/>
      <Sense id="s2" synset="tiny-1"/></LexicalEntry>
    <LexicalEntry id="w3"><Lemma writtenForm="vehicle" partOfSpeech="n"/>
      <Sense id="s3" synset="tiny-2"/></LexicalEntry>
    <LexicalEntry id="w4"><Lemma writtenForm="taxi" partOfSpeech="n"/>
      <Sense id="s4" synset="tiny-3"/></LexicalEntry>
    <Synset id="tiny-1" ili="i1" partOfSpeech="n">
      <SynsetRelation relType="hypernym" target="tiny-2"/>
      <SynsetRelation relType="hyponym" target="tiny-3"/></Synset>
    <Synset id="tiny-2" ili="i2" partOfSpeech="n"/>
    <Synset id="tiny-3" ili="i3" partOfSpeech="n"/>
    <Synset id="tiny-4" ili="i4" partOfSpeech="n">
      <SynsetRelation relType="instance_hypernym" target="tiny-2"/></Synset>
  </Lexicon>
  <Lexicon id="klein" label="klein" language="de" email="a@b.c" license="x" version="1">
    <LexicalEntry id="d1"><Lemma writtenForm="Auto" partOfSpeech="n"/>
      <Sense id="t1" synset="klein-1"/></LexicalEntry>
    <Synset id="klein-1" ili="i1" partOfSpeech="n"/>
  </Lexicon>
</LexicalResource>
"""


@pytest.fixture
def lexicon(tmp_path: Path):
    wn = pytest.importorskip("wn")
    before = wn.config.data_directory
    wn.config.data_directory = tmp_path / "data"
    (tmp_path / "tiny.xml").write_text(LEXICON, encoding="utf-8")
    wn.add(tmp_path / "tiny.xml", progress_handler=None)
    yield wn
    wn.config.data_directory = before


def test_wordnet_gives_words_of_every_kind(lexicon):
    found = related("car", lexicon)
    assert found["synonym"] == ("motor car",)
    assert found["wider"] == ("vehicle",) and found["narrower"] == ("taxi",)
    assert found["other language"] == ("Auto",)
    assert not {"synonym", "wider"} & set(related("tree", lexicon))  # control


def test_without_a_lexicon_there_are_no_words():
    class Nothing:
        def synsets(self, *_, **__):
            raise LookupError("no lexicon found")

    assert "synonym" not in related("car", Nothing())


def test_plurals():
    pytest.importorskip("inflect")
    assert related("mouse", _empty())["plural"] == ("mice",)


def _empty():
    class Empty:
        synsets = staticmethod(lambda *_, **__: [])

    return Empty()


def test_misspellings_are_one_letter_away_and_repeat():
    def drawn(seed):
        return misspelt("truck", torch.Generator().manual_seed(seed))

    words = drawn(1)
    assert words == drawn(1) != drawn(2)
    assert len(words) == len(set(words)) == 8 and "truck" not in words
    assert all(_distance(word, "truck") == 1 for word in words)
    assert _distance("lorry", "truck") > 1  # control
    assert misspelt("42", torch.Generator()) == ()


def _distance(one: str, other: str) -> int:
    """Of Damerau and Levenshtein, adjacent letters changed over counting as one."""
    rows = [list(range(len(other) + 1))]
    for i, a in enumerate(one, 1):
        row = [i]
        for j, b in enumerate(other, 1):
            least = min(rows[-1][j] + 1, row[j - 1] + 1, rows[-1][j - 1] + (a != b))
            if i > 1 and j > 1 and (a, one[i - 2]) == (other[j - 2], b):
                least = min(least, rows[-2][j - 2] + 1)
            row.append(least)
        rows.append(row)
    return rows[-1][-1]
