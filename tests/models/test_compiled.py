"""Compiled layers: the same numbers, few shapes, only where it pays, and no mark on the model."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import answered, make_encoder_decoder, make_loaded

from llmxai.methods import layer_integrated_gradients
from llmxai.models import compiled
from llmxai.models.compiled import (
    COMPILATION,
    MULTIPLE,
    NODES,
    SAVED,
    Padding,
    can_compile,
    layers_compiled,
    padding_for,
)
from llmxai.settings import Compute

TOKENS = 32


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Compilation on the CPU, without a code generator, whatever it saves; gives the calls captured per compilation."""
    captured: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        captured.append(len(graph.graph.nodes))
        return torch._dynamo.backends.debugging.aot_eager(graph, inputs)

    torch._dynamo.reset()
    monkeypatch.setitem(COMPILATION, "cpu", 0.0)
    monkeypatch.setitem(MULTIPLE, "cpu", TOKENS)
    for itemsize in (4, 8):
        monkeypatch.setitem(SAVED, itemsize, 1.0)
    monkeypatch.setattr(compiled, "BACKEND", backend)
    monkeypatch.setattr(compiled, "_done", set())
    monkeypatch.setattr(compiled, "_spent", {})
    monkeypatch.setattr(compiled, "_broken", [])
    yield captured
    torch._dynamo.reset()


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "mistral"])
@pytest.mark.parametrize("n_steps", [5, None])
def test_compiled_layers_and_padding_change_rounding_only(
    architecture: str, n_steps: int | None, compiling: list[int]
) -> None:
    loaded = make_loaded(architecture, dtype=torch.float64)
    generation = answered(loaded)
    options: dict[str, Any] = {"n_steps": n_steps, "max_nodes": 16, "features": "all"}
    got = layer_integrated_gradients(loaded, generation, **options, compute=Compute(chunk_tokens=4 * TOKENS))
    assert compiling, "nothing was compiled"
    compiled._broken.append("no more")
    want = layer_integrated_gradients(loaded, generation, **options)
    assert got.certificate is not None
    assert want.certificate is not None
    assert got.certificate.nodes == want.certificate.nodes
    assert (got.values - want.values).abs().max() < 1e-6 * want.values.abs().max()


def test_one_compilation_serves_all_layers_copies_and_later_explanations(compiling: list[int]) -> None:
    loaded = make_loaded("llama", num_hidden_layers=6)
    generation = answered(loaded)
    compute = Compute(chunk_tokens=4 * TOKENS)
    layer_integrated_gradients(loaded, generation, n_steps=4, features="all", compute=compute)
    first = len(compiling)
    assert first <= 2  # layers that share a mask, or whose kernels are asked for otherwise
    again = replace(loaded, model=copy.deepcopy(loaded.model))
    layer_integrated_gradients(again, generation, n_steps=4, features="all", compute=compute)
    assert len(compiling) == first


@pytest.mark.usefixtures("compiling")
def test_no_mark_is_left_and_an_own_compilation_stays() -> None:
    loaded = make_loaded("llama")
    layers = loaded.model.model.layers
    layers[1].compile(backend="eager")
    own = layers[1]._compiled_call_impl
    for fails in (False, True):
        try:
            with layers_compiled(loaded.model):
                assert all(layer._compiled_call_impl not in (None, own) for layer in layers)
                assert not fails
        except AssertionError:
            assert fails
        assert [layer.__dict__.get("_compiled_call_impl") for layer in layers] == [None, own, None]
    assert torch._functorch.config.donated_buffer == donated


donated = torch._functorch.config.donated_buffer


@pytest.mark.usefixtures("compiling")
def test_a_failing_compiler_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(_graph: Any, _inputs: Any) -> Any:
        raise RuntimeError("no code generator here")

    monkeypatch.setattr(compiled, "BACKEND", backend)
    loaded = make_loaded("llama", dtype=torch.float64)
    generation = answered(loaded)
    compute = Compute(chunk_tokens=4 * TOKENS)
    got = layer_integrated_gradients(loaded, generation, n_steps=4, features="all", compute=compute)
    assert len(compiled._broken) == 1
    assert not can_compile(loaded)
    want = layer_integrated_gradients(loaded, generation, n_steps=4, features="all")
    assert (got.values - want.values).abs().max() < 1e-9


@pytest.mark.usefixtures("compiling")
def test_shapes_are_few_and_compiled_once_they_have_cost_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = make_loaded("llama")
    monkeypatch.setitem(COMPILATION, "cpu", 10.0)
    monkeypatch.setattr(compiled, "traffic_seconds", lambda *_args, **_options: 1.0)  # of a pass
    pairs = round(0.4 * 10 / SAVED[2])  # 4 of the 10 seconds that a compilation takes would be saved
    found = [padding_for(loaded, tokens=TOKENS + 1, most=30, pairs=pairs, dtype=torch.bfloat16) for _ in range(4)]
    assert [one is not None for one in found] == [False, False, True, True]
    assert found[2] is not None
    assert found[2].tokens == 2 * TOKENS
    assert found[2].nodes in NODES
    assert found[2].nodes * found[2].tokens <= 30 * (TOKENS + 1)
    other = padding_for(loaded, pairs=1, tokens=TOKENS + 9, most=23, dtype=torch.bfloat16)
    assert other == found[2]  # another length and another number of nodes, the same shape


@pytest.mark.usefixtures("compiling")
@pytest.mark.parametrize(("known", "nodes"), [(50, 25), (30, 30), (31, 16), (90, 30), (91, 23), (4, 4), (1, 1)])
def test_a_known_number_of_nodes_is_split_into_equal_chunks(known: int, nodes: int) -> None:
    found = padding_for(make_loaded("llama"), tokens=TOKENS, most=30, pairs=10**6, dtype=torch.bfloat16, known=known)
    assert found == Padding(nodes=nodes, tokens=TOKENS)


@pytest.mark.usefixtures("compiling")
def test_which_models_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = make_loaded("llama")
    assert can_compile(loaded)
    assert not can_compile(replace(loaded, computing=torch.float32))
    assert not can_compile(replace(loaded, quantization="bitsandbytes 4bit"))
    assert not can_compile(make_encoder_decoder("t5"))
    loaded.model.hf_device_map = {"model": 0, "lm_head": "disk"}
    assert not can_compile(loaded)
    loaded = make_loaded("llama")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not can_compile(loaded)
    monkeypatch.setenv("CXX", sys.executable)
    assert can_compile(loaded)
    monkeypatch.delitem(COMPILATION, "cpu")
    assert not can_compile(loaded)


@pytest.mark.usefixtures("compiling")
def test_float32_is_never_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(SAVED, 4)
    monkeypatch.setitem(COMPILATION, "cpu", 1e-9)
    loaded = make_loaded("llama")
    wanted = {"tokens": 9, "most": 30, "pairs": 10**9}
    assert padding_for(loaded, **wanted, dtype=torch.float32) is None
    assert padding_for(loaded, **wanted, dtype=torch.bfloat16) == Padding(nodes=8, tokens=32)
