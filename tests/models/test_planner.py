"""The memory planner against what autograd really keeps, and what it says when nothing fits."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from kept import BATCH, SEQ, estimated, kept_by_autograd, wide_model
from tiny import ARCHITECTURES, answered, make_loaded, make_model, make_tokenizer
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from llmxai.errors import InsufficientMemoryError
from llmxai.methods.gradients.deletion_path import presence_path
from llmxai.models import frozen_eval, wrap
from llmxai.models import memory as planner
from llmxai.models.memory import (
    MemoryPlan,
    Saved,
    Shape,
    free_memory,
    plan_for,
    plan_memory,
    require_fits,
    useful_tokens,
    weight_bytes,
    working_bytes,
)
from llmxai.models.precision import computing
from llmxai.settings import CHUNK_TOKENS, Compute
from llmxai.types import Generation, Role


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_a_layer_keeps(architecture: str, dtype: torch.dtype) -> None:
    model = wide_model(architecture, dtype)
    assert estimated(model) == pytest.approx(kept_by_autograd(model), rel=0.3)


@pytest.mark.parametrize("fused", [True, False])
def test_what_a_layer_keeps_along_the_deletion_path(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module(presence_path.__module__), "FUSED_FROM", 1 if fused else 10**6)
    model = wide_model("llama", torch.float32)
    loaded = wrap(model, make_tokenizer(), name="wide")
    ids = tuple(range(20, 20 + SEQ))
    roles = (Role.USER,) * (SEQ - 1) + (Role.GENERATED,)
    generation = Generation(
        ids=ids, prompt_len=SEQ - 1, roles=roles, texts=("x",) * SEQ, words=(), logprobs=None, stop="given", request={}
    )
    path = presence_path(loaded, generation, features="content")
    assert (path.saved(model).maps == 0) is fused

    def run() -> None:
        inputs = path.inputs(loaded, [0.5] * BATCH, slice(SEQ)).requires_grad_()
        path.logits(loaded, inputs, positions=[SEQ - 1], live=slice(0, SEQ), prefix=None)

    with frozen_eval(model), path.attached(model), torch.enable_grad():
        kept = kept_by_autograd(model, run)
    assert estimated(model, path.saved(model)) == pytest.approx(kept, rel=0.1)


def llama(**changes: Any) -> PreTrainedConfig:
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "num_attention_heads": 8}
    return AutoConfig.for_model("llama", vocab_size=32000, **{**sizes, **changes})


def plan(free: float, **changes: Any) -> MemoryPlan:
    options = {"tokens": 256, "targets": 16, "dtype": torch.float32, "free": int(free * 2**20), **changes}
    return plan_memory(llama(), **options)


def test_with_room_the_fastest_settings_are_chosen() -> None:
    chosen = plan(8000)
    assert (chosen.chunk_tokens, chosen.checkpoint, chosen.fits) == (1024, False, True)


def test_less_room_gives_smaller_chunks_first_then_checkpointing_then_a_refusal() -> None:
    plans = [plan(free) for free in range(600, 10, -5)]
    kinds = [(p.checkpoint, -p.chunk_tokens) for p in plans if p.fits]
    assert kinds == sorted(kinds)
    assert {p.chunk_tokens for p in plans if not p.checkpoint} == {1024, 768, 512, 256}
    assert any(p.checkpoint for p in plans if p.fits)
    assert all(p.total <= 0.8 * p.free for p in plans if p.fits)
    assert not plans[-1].fits
    with pytest.raises(InsufficientMemoryError, match=r"x: explaining 256 tokens in float32 needs about 0\.\d\d GiB"):
        require_fits(plans[-1], name="x", tokens=256, dtype=torch.float32)
    require_fits(plans[0], name="x", tokens=256, dtype=torch.float32)


def test_the_refusal_names_the_mend() -> None:
    for dtype, mend in [(torch.float32, "--dtype bfloat16"), (torch.bfloat16, "--quantize 4bit")]:
        with pytest.raises(InsufficientMemoryError, match=f"Shorten the prompt.*{mend}"):
            require_fits(plan(1, dtype=dtype), name="x", tokens=256, dtype=dtype)


def test_what_must_grow_grows() -> None:
    shape = Shape.of(llama())
    base = {"tokens": 256, "targets": 16, "itemsize": 4, "chunk_tokens": 1024, "checkpoint": False}
    least = working_bytes(shape, **base)
    assert working_bytes(shape, **{**base, "checkpoint": True}) < least / 2
    for name, more in {
        "targets": 160,
        "itemsize": 8,
        "chunk_tokens": 2048,
        "saved": Saved(maps=2),
        "heap": True,
    }.items():
        assert working_bytes(shape, **{**base, name: more}) > least


def test_experts_count_as_often_as_a_token_goes_to_them() -> None:
    config = AutoConfig.for_model("mixtral", intermediate_size=100, num_experts_per_tok=3, hidden_size=64)
    assert Shape.of(config).intermediate == 300


def test_bytes_of_weights() -> None:
    model = make_model("llama")
    plain, share = weight_bytes(model, dtype=torch.float32, quantize=None)
    assert plain == 4 * model.num_parameters()
    assert 0.3 < share < 1
    small = weight_bytes(model, dtype=torch.float32, quantize="4bit")[0]
    assert small == pytest.approx(plain * (1 - share) + plain * share * 4.5 / 32, rel=1e-3)
    tied = make_model("llama", tie_word_embeddings=True)
    assert weight_bytes(tied, dtype=torch.bfloat16, quantize=None)[0] == 2 * tied.num_parameters()


def test_a_containers_limit_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**12))
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 300\n")
    assert planner._container_limits(tmp_path) == [3300]
    (tmp_path / "memory.max").write_text("max\n")
    assert planner._container_limits(tmp_path) == []
    assert planner._container_limits(tmp_path / "none") == []
    monkeypatch.setattr(planner, "_container_limits", lambda: [7])
    assert free_memory() == 7


# devices


ONE_B = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
CUDA = torch.device("cuda", 0)


def test_memory_that_torch_keeps_for_reuse_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 GiB reserved and 2 allocated on a card with 14 GiB left: 76 are free."""
    for name, gib in {"mem_get_info": 14, "memory_reserved": 64, "memory_allocated": 2}.items():
        answer = (gib * planner.GIB, 80 * planner.GIB) if name == "mem_get_info" else gib * planner.GIB
        monkeypatch.setattr(torch.cuda, name, lambda _device, answer=answer: answer)
    assert free_memory(CUDA) == 76 * planner.GIB


@pytest.mark.parametrize("free", [4, 10, 20, 40, 70, 140])
@pytest.mark.parametrize("tokens", [64, 576, 4096, 32768])
def test_a_gpu_is_filled(free: int, tokens: int) -> None:
    """One node more would not fit, or more tokens than are useful would go through at once."""
    config, room = llama(**ONE_B), free * planner.GIB
    useful = useful_tokens(config, device=CUDA, itemsize=4)
    assert useful == 32768
    chosen = plan_memory(config, tokens=tokens, targets=16, dtype=torch.float32, free=room, device=CUDA)
    if not chosen.fits:
        assert (chosen.chunk_tokens, chosen.checkpoint) == (tokens, True)
        return
    nodes = chosen.chunk_tokens // tokens
    shape = {"tokens": tokens, "targets": 16, "itemsize": 4, "checkpoint": chosen.checkpoint}
    more = working_bytes(Shape.of(config), chunk_tokens=(nodes + 1) * tokens, **shape)
    assert more > 0.8 * room or (nodes + 1) * tokens > useful
    assert nodes * tokens <= max(useful, tokens)


def test_width_and_dtype_decide_how_many_tokens_are_useful() -> None:
    cpu = torch.device("cpu")
    assert [useful_tokens(llama(), device=cpu, itemsize=size) for size in (2, 4, 8)] == [4096, 1024, 1024]
    assert useful_tokens(llama(hidden_size=4096), device=CUDA, itemsize=2) == 16384


def test_the_fullest_of_several_devices_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three of eight layers on a card with 10 GiB free, five on one with 40: as 80/3 and 64 GiB for all of them."""
    model = make_model("llama", num_hidden_layers=8)
    places = [torch.device("cuda", 0)] * 3 + [torch.device("cuda", 1)] * 5
    for layer, place in zip(model.model.layers, places, strict=True):
        layer._hf_hook = SimpleNamespace(execution_device=place.index)
    model.hf_device_map = {"": 0}
    free = {torch.device("cuda", 0): 10 * planner.GIB, torch.device("cuda", 1): 40 * planner.GIB}
    monkeypatch.setattr(planner, "free_memory", free.__getitem__)
    found = planner.plan_for(model, tokens=100, targets=2)
    assert found.free == 10 * planner.GIB * 8 // 3
    assert not found.checkpoint
    assert found.chunk_tokens > 100 * CHUNK_TOKENS


def test_what_the_caller_chose_stays() -> None:
    for checkpoint in (False, True):
        assert plan(8000, checkpoint=checkpoint).checkpoint is checkpoint
        assert plan(8000, checkpoint=checkpoint, offloaded=True).checkpoint is checkpoint
    assert plan(8000, offloaded=True).checkpoint is True


def test_experts_that_are_cast_stay_in_the_graph() -> None:
    """Counted: what autograd keeps of their weights. A large model of experts is checkpointed for it."""
    loaded = make_loaded("mixtral", dtype=torch.bfloat16)
    model, bytes_kept = loaded.model, dict[int, int]()

    def note(saved: torch.Tensor) -> torch.Tensor:
        if saved.dim() == 3 and saved.shape[0] == model.config.num_local_experts:
            bytes_kept[saved.untyped_storage().data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    ids = torch.tensor([[1, 2, 3, 4]])
    embeds = model.get_input_embeddings()(ids).detach().float().requires_grad_()
    with frozen_eval(model), computing(model, torch.float32):
        with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
            out = model(inputs_embeds=embeds, use_cache=False).logits
        options = {"tokens": 4, "targets": 1, "dtype": torch.float32}
        plans = [plan_for(model, **options, computing=each) for each in (None, torch.float32)]
        layer = [plan_for(model, **options, computing=torch.float32, checkpoint=True)]
        layer.append(plan_for(model, **options, checkpoint=True))
    del out
    kept = sum(bytes_kept.values())
    assert kept > 0
    assert plans[1].working - plans[0].working == kept
    assert layer[0].working - layer[1].working == kept // model.config.num_hidden_layers


def test_the_copy_for_gradients_is_made_before_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes memory, and on a CPU it attends in another way."""
    method = importlib.import_module("llmxai.methods.gradients.integrated_gradients")
    done, planned = list[str](), list[PreTrainedModel]()
    make, plan = method.in_dtype, method.plan_for

    def copied(*arguments: Any) -> Any:
        done.append("copy")
        return make(*arguments)

    def watched(model: PreTrainedModel, **options: Any) -> MemoryPlan:
        done.append("plan")
        planned.append(model)
        found: MemoryPlan = plan(model, **options)
        return found

    monkeypatch.setattr(method, "in_dtype", copied)
    monkeypatch.setattr(method, "plan_for", watched)
    loaded = make_loaded("llama")
    method.layer_integrated_gradients(loaded, answered(loaded), n_steps=1, compute=Compute(gradient_dtype="bfloat16"))
    assert done == ["copy", "plan"]
    assert planned[0].dtype == torch.bfloat16


def test_where_one_node_does_not_fit_it_is_checkpointed_after_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the caller has said that it must not be."""
    passes = importlib.import_module("llmxai.methods.gradients.path_gradients")
    method = importlib.import_module("llmxai.methods.gradients.integrated_gradients")
    loaded = make_loaded("llama")
    generation, backward = answered(loaded), passes.PathFunction._pullback

    def full(self: Any, inputs: torch.Tensor, **options: Any) -> Any:
        if "forward" not in self.loaded.model.model.layers[0].__dict__:  # it keeps its activations
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return backward(self, inputs, **options)

    want = method.layer_integrated_gradients(loaded, generation, n_steps=4, compute=Compute(checkpoint=True))
    monkeypatch.setattr(passes.PathFunction, "_pullback", full)
    got = method.layer_integrated_gradients(loaded, generation, n_steps=4)
    assert got.settings["checkpoint"] is True
    assert (got.values - want.values).abs().max() < 1e-6
    with pytest.raises(torch.OutOfMemoryError):
        method.layer_integrated_gradients(loaded, generation, n_steps=4, compute=Compute(checkpoint=False))
