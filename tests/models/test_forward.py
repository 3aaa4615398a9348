"""Into the model and out of it: embeddings, logits at positions, the cache of a beginning, flags that are put back."""

from __future__ import annotations

import pytest
import torch
from tiny import ARCHITECTURES, HYBRIDS, SENTENCES, WINDOW, answered, make_loaded, prompt_tokens
from torch._subclasses import FakeTensorMode
from transformers.integrations import sdpa_attention

from llmxai.errors import UnsupportedModelError
from llmxai.generation import Decoding, generate
from llmxai.methods import layer_integrated_gradients
from llmxai.models import embed, forward, forward_logits, prefix_cache, transformer_depth
from llmxai.models.forward import frozen_eval, is_out_of_memory, repeated, seeded

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


def test_a_cached_prefix_computes_the_logits_of_one_token() -> None:
    """Of 32,000 tokens and a vocabulary of 128,000, all would be 15 GiB."""
    model, rows = make_loaded("llama").model, list[int]()
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: rows.append(output.shape[1]))
    assert prefix_cache(model, embed(model, [1, 2, 3])[None], [1, 2, 3]) is not None
    assert rows == [1]


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


def key(device: str, dtype: torch.dtype) -> torch.Tensor:
    with FakeTensorMode():  # no GPU is needed
        return torch.empty(1, 2, 9, 64, device=device, dtype=dtype)


def test_an_old_gpu_has_no_kernel_for_shared_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for newest, shared in ((7, False), (9, True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda gpu, newest=newest: ((8, newest)[gpu], 0))
        forward._has_flash_kernels.cache_clear()
        with frozen_eval(make_loaded("llama").model):
            each = key("cuda", torch.bfloat16)
            assert sdpa_attention.use_gqa_in_sdpa(None, each, each) is shared
    monkeypatch.undo()
    forward._has_flash_kernels.cache_clear()


def test_heads_do_not_share_keys_in_32_bits_on_a_gpu() -> None:
    """There, PyTorch's only kernel for shared keys holds all scores (pytorch#181528)."""
    own, model = sdpa_attention.use_gqa_in_sdpa, make_loaded("llama").model
    cases = [key("cuda", torch.float32), key("cuda", torch.bfloat16), key("cpu", torch.float32)]
    for _ in range(2):
        with frozen_eval(model):
            with frozen_eval(model):
                assert sdpa_attention.use_gqa_in_sdpa is not own
            assert [sdpa_attention.use_gqa_in_sdpa(None, each, each) for each in cases] == [False, True, True]
            assert not any(sdpa_attention.use_gqa_in_sdpa(torch.zeros(1), each, each) for each in cases)
        assert sdpa_attention.use_gqa_in_sdpa is own
        assert sdpa_attention.use_gqa_in_sdpa(None, cases[0], cases[0])


def test_a_library_without_room_for_its_handle_is_out_of_memory() -> None:
    said = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    assert is_out_of_memory(RuntimeError(said))
    assert not is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_INVALID_VALUE"))


def test_a_seed_draws_the_same_and_reaches_no_gpu_that_is_not_the_model_s(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    torch.manual_seed(7)
    want, before = torch.rand(3), torch.get_rng_state()
    loaded = make_loaded("llama")
    generation = answered(loaded)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _seed: pytest.fail("every GPU was seeded"))
    with seeded(7, device=cpu):
        assert torch.equal(torch.rand(3), want)
    generate(loaded, prompt_tokens(loaded), decoding=Decoding(max_new_tokens=2, temperature=1.0, seed=3))
    layer_integrated_gradients(loaded, generation, n_steps=1)
    assert torch.equal(torch.get_rng_state(), before)
