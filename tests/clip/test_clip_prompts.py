"""Theorem: cutting the padding behind short prompts changes nothing. Oracle: the whole context."""

from __future__ import annotations

import pico
import pytest
import torch

from nullspace_unlearn.clip import encode
from nullspace_unlearn.clip.prompts import cut_by, encode_prompts

SHORT = ["dog", "a cat"]
WHOLE = {"coca_base", "coca_ViT-B-32"}
"""Towers of open_clip's own that look at the padding too."""


@pytest.mark.parametrize("name", pico.FAMILIES)
def test_cut_prompts_embed_as_whole_ones(name, clip_of):
    clip = clip_of(name)
    tower = getattr(clip.model, "text", clip.model)
    seen = []
    hook = tower.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args or tuple(kwargs.values()))[0].shape[1]),
        with_kwargs=True,
    )
    tokens = clip.tokenizer(SHORT)
    with torch.inference_mode():
        whole, cut = encode(clip.model, tokens, "text"), encode_prompts(clip.model, tokens)
        long = encode_prompts(clip.model, clip.tokenizer(["a dog " * 20]))
    hook.remove()
    torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(whole[0], whole[1], atol=1e-3)  # the control
    assert long.isfinite().all() and seen[2] == seen[0]  # a full context is not cut
    # Causal towers of open_clip's own that pool at the end-of-text token, and no others, are cut.
    pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    own = hasattr(tower, "attn_mask") and tower.attn_mask is not None and pool == "argmax"
    assert (seen[1] < seen[0]) == (own and name not in WHOLE)


def test_the_model_is_left_as_it_was(clip_of):
    clip = clip_of("ViT-B-32")
    before = {key: value.clone() for key, value in clip.model.state_dict().items()}
    encode_prompts(clip.model, clip.tokenizer(SHORT))
    after = clip.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("name", pico.FAMILIES)
def test_a_prompt_is_cut_exactly_where_further_words_change_nothing(name, clip_of):
    """Oracle: of ever longer prompts, those that are cut have the same tokens."""
    tokenizer = clip_of(name).tokenizer
    context = tokenizer(["a"]).shape[1]
    prompts = [" ".join(["dog"] * n) for n in range(1, context + 4)]
    tokens = tokenizer(prompts)
    cut, length = cut_by(tokenizer, prompts)
    assert length == context and not cut[0] and cut[-1]
    first = cut.index(True)
    assert all(cut[first:]) and not any(cut[:first])
    distinct = len({tuple(row) for row in tokens.tolist()})
    assert distinct in (first, first + 1)  # the first that is cut may yet end as none before it


def test_a_tokenizer_that_cannot_be_asked_cuts_as_it_likes(clip_of):
    tokenizer = clip_of("ViT-B-32").tokenizer
    long = ["dog " * 200]
    assert cut_by(tokenizer, long)[0] == [True]
    assert cut_by(lambda texts: tokenizer(texts), long)[0] == [False]
