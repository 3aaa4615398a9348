"""Into the model and out of it: embeddings, logits at positions, the cache of a beginning, flags that are put back."""

from __future__ import annotations

import pytest
import torch
from tiny import ARCHITECTURES, HYBRIDS, SENTENCES, WINDOW, make_loaded

from llmxai.errors import UnsupportedModelError
from llmxai.models import embed, forward_logits, prefix_cache, transformer_depth
from llmxai.models.forward import frozen_eval, repeated

DENSE = [name for name in ARCHITECTURES if name != "gpt_oss"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_from_embeddings_are_those_from_ids(architecture: str) -> None:
    loaded = make_loaded(architecture)
    ids = loaded.tokenizer(SENTENCES[0])["input_ids"]
    positions = [2, 5, len(ids) - 1]
    with torch.no_grad():
        got = forward_logits(loaded.model, embed(loaded.model, ids)[None], ids=ids, positions=positions)
        want = loaded.model(torch.tensor([ids])).logits[:, positions]
    assert (got - want).abs().max() < 1e-5
    assert transformer_depth(loaded.model) == 3


@pytest.mark.parametrize("first", [1, WINDOW - 1, WINDOW + 3])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_cached_prefix_changes_nothing(architecture: str, first: int) -> None:
    """Also where the prefix is longer than a sliding window, twice from one cache, and for a batch."""
    loaded = make_loaded(architecture)
    ids = loaded.tokenizer(SENTENCES[0])["input_ids"]
    with torch.no_grad():
        x = embed(loaded.model, ids)[None]
        prefix = prefix_cache(loaded.model, x[:, :first], ids[:first])
        positions = list(range(first, len(ids)))
        want = forward_logits(loaded.model, x, ids=ids, positions=positions)
        for _ in range(2):
            batch = x[:, first:].expand(3, -1, -1)
            later = [p - first for p in positions]
            got = forward_logits(loaded.model, batch, ids=ids[first:], positions=later, prefix=prefix)
            assert (got - want).abs().max() < 1e-4


@pytest.mark.parametrize("architecture", HYBRIDS)
def test_no_cache_where_a_layer_keeps_another_state(architecture: str) -> None:
    loaded = make_loaded(architecture)
    assert prefix_cache(loaded.model, embed(loaded.model, [1, 2])[None], [1, 2]) is None


def test_a_batch_reads_the_same_memory() -> None:
    """No copies of a long prefix for every chunk of nodes."""
    model = make_loaded("llama").model
    prefix = prefix_cache(model, embed(model, [1, 2, 3])[None], [1, 2, 3])
    assert prefix is not None
    for own, grown in zip(prefix.layers, repeated(prefix, 5).layers, strict=True):
        assert isinstance(own.keys, torch.Tensor)
        assert isinstance(grown.keys, torch.Tensor)
        assert len(grown.keys) == 5
        assert grown.keys.data_ptr() == own.keys.data_ptr()


def test_no_cache_of_an_empty_prefix() -> None:
    loaded = make_loaded("llama")
    assert prefix_cache(loaded.model, embed(loaded.model, [1])[None, :0], []) is None


def test_a_model_that_does_not_use_its_table(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = make_loaded("llama")
    x = embed(loaded.model, [1, 2])[None]
    monkeypatch.setattr(loaded.model, "forward", lambda input_ids: input_ids)
    with pytest.raises(UnsupportedModelError, match="does not look its token ids up in its embedding table"):
        forward_logits(loaded.model, x, ids=[1, 2], positions=[0])


def test_flags_are_put_back_also_after_an_exception() -> None:
    model = make_loaded("llama").model.train()
    model.model.layers[0].eval()
    model.lm_head.weight.requires_grad_(False)
    flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    with pytest.raises(KeyError), frozen_eval(model):  # noqa: PT012
        assert not any(m.training for m in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
        raise KeyError
    assert flags == ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()])
