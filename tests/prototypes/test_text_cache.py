"""Text features: encoded once, the same bits from memory, from a file or afresh, never others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nullspace_unlearn import sealed
from nullspace_unlearn.clip import Clip, load
from nullspace_unlearn.prototypes import cell_prototypes, class_prototypes, text_cache
from nullspace_unlearn.prototypes.text_cache import TextCache, cached_text

NAMES = [f"{size} {thing}" for size in ("big", "very small") for thing in ("car", "dog", "sofa")]
PROMPTS = [f"a photo of a {name}." for name in NAMES]
TEMPLATES = ("a photo of a {class}.", "{class}!")


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load("nsu-mini", device="cpu")


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every distinct prompt that went through the tower, call by call."""
    original, seen = Clip.encode_text, list[str]()

    def encode_text(self: Clip, texts: list[str], batch_size: int = 256) -> Tensor:
        seen.extend(dict.fromkeys(texts))
        return original(self, texts, batch_size)

    monkeypatch.setattr(Clip, "encode_text", encode_text)
    yield seen


def test_cached_is_uncached_bit_for_bit(clip: Clip, tmp_path: Path, encoded: list[str]) -> None:
    plain = clip.encode_text(PROMPTS)
    encoded.clear()
    fresh = TextCache().encode(clip, PROMPTS)
    torch.testing.assert_close(fresh, plain, rtol=1e-4, atol=1e-5)
    cache = TextCache(tmp_path)
    assert torch.equal(cache.encode(clip, PROMPTS), fresh)
    assert sorted(encoded) == sorted(2 * PROMPTS)  # control: both caches were empty
    encoded.clear()
    assert torch.equal(cache.encode(clip, PROMPTS[::-1]), fresh.flip(0))  # from memory
    assert torch.equal(TextCache(tmp_path).encode(clip, PROMPTS), fresh)  # from the file
    assert not encoded


def test_a_row_does_not_depend_on_what_else_was_asked(clip: Clip, tmp_path: Path) -> None:
    fresh = TextCache().encode(clip, PROMPTS)
    for order in (PROMPTS, PROMPTS[::-1], PROMPTS[3:]):
        cache, made = TextCache(tmp_path / str(len(order))), {}
        for prompt in order:
            made[prompt] = cache.encode(clip, [prompt])[0]
        for prompt, row in made.items():
            assert torch.equal(row, fresh[PROMPTS.index(prompt)])
    alone = torch.cat([clip.encode_text([prompt]) for prompt in PROMPTS])
    assert not torch.equal(alone, clip.encode_text(PROMPTS))  # control: else it would


def test_prototypes_encode_each_prompt_once(clip: Clip, tmp_path: Path, encoded: list[str]) -> None:
    def both() -> list[Tensor]:
        return [
            class_prototypes(clip, NAMES, TEMPLATES),
            class_prototypes(clip, NAMES[2:], TEMPLATES[:1]),
            cell_prototypes(clip, NAMES, ("photo", "sketch"), ("a {domain} of a {class}.",)),
        ]

    plain = both()
    total = len(encoded)
    encoded.clear()
    with cached_text(tmp_path):
        first = both()
    # "a photo of a big car." is asked for by a class and by a cell.
    assert len(encoded) == len(set(encoded)) == 3 * len(NAMES) < total
    encoded.clear()
    with cached_text(tmp_path):
        second = both()
    assert not encoded
    for a, b, c in zip(plain, first, second, strict=True):
        assert torch.equal(b, c)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    both()
    assert encoded  # control: it ends with the block


class Reversed:
    """A tokenizer that gives other ids for the same words."""

    def __init__(self, original: object) -> None:
        self.original = original

    def __call__(self, texts: list[str]) -> Tensor:
        return self.original([" ".join(reversed(text.split())) for text in texts])  # type: ignore


def test_other_models_and_tokenizers_miss(clip: Clip, tmp_path: Path, encoded: list[str]) -> None:
    TextCache(tmp_path).encode(clip, PROMPTS)
    config = {**clip.config, "model_cfg": {**clip.config["model_cfg"], "quick_gelu": True}}
    half = load("nsu-mini", device="cpu", precision="pure_bf16")
    others = {
        "weights": replace(clip, source=replace(clip.source, sha256="0" * 64)),
        "configuration": replace(clip, config=config),
        "precision": half,
        "tokenizer": replace(clip, tokenizer=Reversed(clip.tokenizer)),
    }
    for what, other in others.items():
        encoded.clear()
        cache = TextCache(tmp_path)
        made = cache.encode(other, PROMPTS)
        assert sorted(encoded) == sorted(PROMPTS), what
        if what in ("precision", "tokenizer"):
            assert not torch.equal(made, TextCache(tmp_path).encode(clip, PROMPTS))
    encoded.clear()
    TextCache(tmp_path).encode(clip, [*PROMPTS, "another template for a big car"])
    assert encoded == ["another template for a big car"]
    renamed = replace(clip, source=replace(clip.source, name="by another name"))
    TextCache(tmp_path).encode(renamed, PROMPTS)
    assert len(encoded) == 1  # control: a name is not the model


def test_random_weights_are_not_kept(clip: Clip, tmp_path: Path, encoded: list[str]) -> None:
    cache = TextCache(tmp_path)
    for _ in range(2):
        encoded.clear()
        cache.encode(replace(clip, source=replace(clip.source, sha256=None)), PROMPTS)
        assert encoded == PROMPTS
    assert not list(tmp_path.iterdir())


def test_an_edit_counts_on_its_own_side(clip: Clip, tmp_path: Path, encoded: list[str]) -> None:
    held = dict(clip.model.named_parameters())
    before = TextCache(tmp_path).encode(clip, PROMPTS)
    for name, factor in (("text_projection", 2), ("text_projection", 3), ("visual.proj", 2)):
        other = clip.with_parameters({name: held[name] * factor}, {})
        encoded.clear()
        made = TextCache(tmp_path).encode(other, PROMPTS)
        text = name == "text_projection"
        assert encoded == (PROMPTS if text else [])  # control: the other tower is the file's
        torch.testing.assert_close(made, before * (factor if text else 1))


@pytest.mark.parametrize("checked", [True, False])
def test_a_flipped_bit_is_seen(
    clip: Clip,
    tmp_path: Path,
    encoded: list[str],
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
    checked: bool,
) -> None:
    fresh = TextCache(tmp_path).encode(clip, PROMPTS)
    (file,) = (tmp_path / "text").iterdir()
    data = bytearray(file.read_bytes())
    data[data.index(fresh[2].numpy().tobytes()) + 9] ^= 1
    file.write_bytes(data)
    encoded.clear()
    if not checked:

        class Anything:
            def __init__(self, data: bytes) -> None: ...

            def hexdigest(self) -> str:
                return file.stem.partition("-")[2]

        with monkeypatch.context() as patch:
            patch.setattr(sealed, "hashlib", type("hashlib", (), {"sha256": Anything}))
            made = TextCache(tmp_path).encode(clip, PROMPTS)
        assert not encoded and not torch.equal(made, fresh)  # control: the wrong one is read
        return
    assert torch.equal(TextCache(tmp_path).encode(clip, PROMPTS), fresh)
    assert sorted(encoded) == sorted(PROMPTS)
    (warning,) = recwarn.list
    assert "is damaged" in str(warning.message) and "encoded again" in str(warning.message)
    encoded.clear()
    TextCache(tmp_path).encode(clip, PROMPTS)
    assert not encoded and len(recwarn.list) == 1  # it was replaced


def test_two_processes_lose_nothing(clip: Clip, tmp_path: Path, encoded: list[str]) -> None:
    one, other = TextCache(tmp_path), TextCache(tmp_path)
    one.encode(clip, PROMPTS[:1])
    other.encode(clip, PROMPTS[1:2])  # which read the folder after the first one wrote
    one.encode(clip, PROMPTS[2:3])
    assert len(list((tmp_path / "text").iterdir())) == 1
    encoded.clear()
    TextCache(tmp_path).encode(clip, PROMPTS[:4])
    assert encoded == PROMPTS[3:4]


def test_a_bounded_number_is_kept(
    clip: Clip, tmp_path: Path, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_cache, "_MOST", 4)
    for prompt in PROMPTS:
        TextCache(tmp_path).encode(clip, [prompt])
    encoded.clear()
    TextCache(tmp_path).encode(clip, PROMPTS)
    assert sorted(encoded) == sorted(PROMPTS[:2])  # the last ones are there


def test_a_folder_that_cannot_be_written_to(clip: Clip, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="text features are not kept: "):
        made = TextCache(tmp_path / "file").encode(clip, PROMPTS)
    assert torch.equal(made, TextCache().encode(clip, PROMPTS))
