"""The memory planner against what autograd really keeps, and what it says when nothing fits."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from kept import estimated, kept_by_autograd, wide_model
from tiny import ARCHITECTURES, make_model
from transformers import AutoConfig, PreTrainedConfig

from llmxai.errors import InsufficientMemoryError
from llmxai.models import memory as planner
from llmxai.models.memory import (
    MemoryPlan,
    Shape,
    free_memory,
    plan_memory,
    require_fits,
    weight_bytes,
    working_bytes,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_a_layer_keeps(architecture: str, dtype: torch.dtype) -> None:
    model = wide_model(architecture, dtype)
    assert estimated(model) == pytest.approx(kept_by_autograd(model), rel=0.3)


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
    assert {p.chunk_tokens for p in plans if not p.checkpoint} == {1024, 512, 256}
    assert any(p.checkpoint for p in plans if p.fits)
    assert all(p.total <= 0.85 * p.free for p in plans if p.fits)
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
    for name, more in {"targets": 160, "itemsize": 8, "chunk_tokens": 2048, "score_maps": 2}.items():
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
