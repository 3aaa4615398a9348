"""Fused attention with faded keys against the formula, written out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from llmxai.methods.gradients import fused

KEYS = 40


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


Form = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
FORMS = {"on CPUs": fused._OnCpu.apply, "behind a mask": fused.behind_a_mask}


def formula(query: Tensor, key: Tensor, value: Tensor, added: Tensor, scale: float) -> Tensor:
    """softmax over j <= i of scale q_i k_j + added_j (j < i), times the values."""
    queries, keys = query.shape[2], key.shape[2]
    itself = torch.eye(keys, dtype=torch.bool)[keys - queries :]
    behind = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    scores = scale * query @ key.transpose(2, 3) + added.masked_fill(itself, 0)
    return scores.masked_fill(~behind, -math.inf).softmax(dim=-1) @ value


def case(*, before: int, dtype: torch.dtype, channels: int = 16, value_channels: int = 16) -> list[Tensor]:
    """Queries, keys, values and log-presences of two nodes: present, faded, hidden at the start and in between."""
    source = torch.Generator().manual_seed(before)

    def random(length: int, width: int) -> Tensor:
        return torch.randn(2, 3, length, width, dtype=dtype, generator=source)

    wide = torch.promote_types(dtype, torch.float32)
    added = -5 * torch.rand(2, 1, 1, KEYS, dtype=wide, generator=source)
    added[..., :before] = 0  # a prefix is present
    added[0, ..., before : before + 3] = -4000
    added[1, ..., before + 4 : before + 9] = -4000
    added[1, ..., before + 12 : before + 20] = 0
    leaves = [random(KEYS - before, channels), random(KEYS, channels), random(KEYS, value_channels), added]
    return [leaf.requires_grad_() for leaf in leaves]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize("before", [0, 7, KEYS - 1])
@pytest.mark.parametrize("value_channels", [16, 8, 24])
def test_it_is_the_formula_with_its_gradients(
    form: str, dtype: torch.dtype, tolerance: float, before: int, value_channels: int
) -> None:
    leaves = case(before=before, dtype=dtype, value_channels=value_channels)
    weights = torch.randn(2, 3, KEYS - before, value_channels, dtype=dtype, generator=torch.Generator().manual_seed(1))
    results = []
    for attend in (FORMS[form], formula):
        out = attend(*leaves, 0.3)
        results.append([out, *torch.autograd.grad((weights * out).sum(), leaves)])
    for got, want in zip(*results, strict=True):
        assert got.shape == want.shape
        assert difference(got, want) <= tolerance * float(want.detach().abs().max())
    assert (results[0][-1][..., -1] == 0).all()  # no query sees the last key's number


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_is_the_formula_in_16_bits(dtype: torch.dtype) -> None:
    leaves = case(before=0, dtype=dtype)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    got, want = fused._OnCpu.apply(*leaves, 0.3), formula(*wide, 0.3)
    gradients = torch.autograd.grad(got.double().sum(), leaves), torch.autograd.grad(want.sum(), wide)
    tolerance = 8 * torch.finfo(dtype).eps
    for ours, right in zip((got, *gradients[0]), (want, *gradients[1]), strict=True):
        assert difference(ours, right) <= tolerance * max(1.0, float(right.detach().abs().max()))


def test_heads_share_their_keys() -> None:
    """Grouped heads, and the output with heads behind positions, as transformers wants it."""
    query, key, value, added = case(before=5, dtype=torch.float64)
    query = torch.cat([query, query.flip(1)], dim=1)
    got = fused.fused_attention(query, key, value, added, None)
    want = formula(query, key.repeat_interleave(2, dim=1), value.repeat_interleave(2, dim=1), added, 16**-0.5)
    assert torch.allclose(got, want.transpose(1, 2), atol=1e-13)
    assert got.is_contiguous()


@pytest.mark.parametrize("before", [0, 7])
def test_all_layers_share_one_mask(before: int) -> None:
    """In the form in which kernels take it: else the graph of every layer would keep a copy of its own."""
    leaves = case(before=before, dtype=torch.float32)
    kept = set[int]()

    def note(saved: Tensor) -> Tensor:
        if saved.shape[-2:] == (KEYS - before, 2 * KEYS - before):
            kept.add(saved.untyped_storage().data_ptr())
        return saved

    mask = fused._behind_and_itself(KEYS - before, KEYS, dtype=torch.float32, device=torch.device("cpu"))
    assert all(stride % fused.ALIGNED == 0 for stride in mask.stride()[:-1])
    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        outputs = [fused.behind_a_mask(*leaves, 0.3) for _ in range(3)]
    assert kept == {mask.untyped_storage().data_ptr()}
    assert all(torch.equal(out, outputs[0]) for out in outputs)
    fused.forget_masks()
