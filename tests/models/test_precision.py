"""What is stored in 16 bits computes in float32, and nothing of it stays."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    ARCHITECTURES,
    ENCODER_DECODERS,
    answered,
    make_encoder_decoder,
    make_loaded,
    save_wide,
)
from torch import nn
from transformers.pytorch_utils import Conv1D

from llmxai.generation import replay
from llmxai.methods import layer_integrated_gradients
from llmxai.models import LoadedModel, embed, forward_logits, load
from llmxai.models import precision as module
from llmxai.models.forward import frozen_eval
from llmxai.models.precision import computing, computing_in, full_precision, in_dtype, rounds_activations
from llmxai.models.speed import product_rate
from llmxai.settings import Compute

SCALE = 0.1


def logits(loaded: LoadedModel, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        x = embed(loaded.model, ids)[None]
        return forward_logits(loaded.model, x, ids=ids, positions=range(len(ids)))


def marks(model: nn.Module) -> dict[str, object]:
    """All that could stay behind."""
    return {
        "dtypes": {name: p.dtype for name, p in model.named_parameters()},
        "ids": {name: id(p) for name, p in model.named_parameters()},
        "forwards": {name: m.__dict__.get("forward") for name, m in model.named_modules()},
        "own": {name: sorted(m.__dict__) for name, m in model.named_modules()},
        "compute": {name: getattr(m, "compute_dtype", None) for name, m in model.named_modules()},
        "products": torch.get_float32_matmul_precision(),
    }


@contextmanager
def in_place(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoadedModel]:
    """Widened module by module, as where no copy fits."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "copy_fits", lambda _model, **_options: False)
        patch.setattr(module, "IN_CACHE", 64)  # several blocks, and look-ups in uncast tables, in tiny models, too
        with full_precision(loaded) as exact:
            yield exact


@pytest.mark.parametrize("architecture", [*ARCHITECTURES])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_place_equals_a_copy(architecture: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = make_loaded(architecture, dtype=dtype, initializer_range=SCALE)
    ids = list(range(10, 18))
    before = marks(loaded.model)
    with full_precision(loaded) as copied:
        assert copied.model is not loaded.model
        want = logits(copied, ids)
    with in_place(loaded, monkeypatch) as exact:
        assert exact.model is loaded.model
        assert exact.dtype == torch.float32
        got = logits(exact, ids)
    assert got.dtype == want.dtype == torch.float32
    assert (got - want).abs().max() < 1e-5 * want.abs().max()
    assert marks(loaded.model) == before


def test_a_copy_is_the_stored_weights_in_float32() -> None:
    loaded = make_loaded("llama", dtype=torch.bfloat16, initializer_range=SCALE)
    with full_precision(loaded) as exact:
        for (name, wide), (_, stored) in zip(
            exact.model.named_parameters(), loaded.model.named_parameters(), strict=True
        ):
            assert wide.dtype == torch.float32, name
            assert torch.equal(wide, stored.float()), name
        assert exact.stored_dtype == torch.bfloat16
        assert exact.dtype == torch.float32
        assert loaded.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_models_are_given_back(dtype: torch.dtype) -> None:
    loaded = make_loaded("gpt2", dtype=dtype)
    with full_precision(loaded) as exact:
        assert exact is loaded
        assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("architecture", [*ENCODER_DECODERS])
def test_encoder_decoders(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = make_encoder_decoder(architecture)
    loaded.model.to(torch.bfloat16)
    x = torch.arange(10, 20).tolist()
    found = []
    for context in (full_precision(loaded), in_place(loaded, monkeypatch)):
        with context as exact, torch.no_grad():
            embeds = embed(exact.model, x)[None]
            found.append(forward_logits(exact.model, embeds, ids=x, positions=[6, 7, 8, 9], source=6))
    assert (found[0] - found[1]).abs().max() < 1e-5 * found[0].abs().max()


def test_nothing_stays_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = make_loaded("llama", dtype=torch.bfloat16)
    before = marks(loaded.model)
    with pytest.raises(RuntimeError, match="on purpose"), in_place(loaded, monkeypatch):
        raise RuntimeError("on purpose")
    assert marks(loaded.model) == before


def test_gradients_through_widened_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = make_loaded("llama", dtype=torch.bfloat16, initializer_range=SCALE)
    generation = answered(loaded)
    values = []
    for context in (full_precision(loaded), in_place(loaded, monkeypatch)):
        with context as exact:
            values.append(layer_integrated_gradients(exact, generation, n_steps=3).values)
    assert (values[0] - values[1]).abs().max() < 1e-5 * values[0].abs().max()


def test_a_bfloat16_model_converges_as_its_float32_copy_does() -> None:
    loaded = make_loaded("llama", dtype=torch.bfloat16, initializer_range=SCALE)
    generation = answered(loaded)
    with full_precision(loaded) as exact:
        f = torch.tensor(replay(exact, generation).f, dtype=torch.float64)
        scores = layer_integrated_gradients(exact, generation, f_input=f)
    assert scores.certificate is not None
    assert all(scores.certificate.converged)
    assert torch.isfinite(scores.values).all()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes", "ignore::FutureWarning:bitsandbytes")
def test_8_bit_layers_compute_with_their_weights_and_round_no_input(tmp_path: Path, seen: bool, bias: bool) -> None:
    """As a float32 model with the weights that the 8 bits stand for; before and after a pass of bitsandbytes."""
    save_wide(tmp_path, mlp_bias=bias)
    loaded, float32 = load(tmp_path, quantize="8bit"), load(tmp_path, dtype="float32")
    ids = list(range(10, 18))
    own = logits(loaded, ids) if seen else None
    layers = dict(float32.model.named_modules())
    for name, layer in loaded.model.named_modules():
        if type(layer).__name__ == "Linear8bitLt":
            scale = layer.weight.SCB if layer.state.SCB is None else layer.state.SCB
            layers[name].weight.data = layer.weight.data.float() * scale[:, None] / 127
    before = marks(loaded.model)
    generation = answered(float32)
    assert rounds_activations(loaded)
    with full_precision(loaded) as exact:
        assert not rounds_activations(exact)
        got, scores = logits(exact, ids), layer_integrated_gradients(exact, generation)
    assert marks(loaded.model) == before
    want, sums = logits(float32, ids), layer_integrated_gradients(float32, generation)
    assert (got - want).abs().max() < 1e-5 * want.abs().max()
    assert (scores.values - sums.values).abs().max() < 1e-4 * sums.values.abs().max()
    assert scores.certificate is not None
    assert all(scores.certificate.converged)
    assert scores.certificate.floor is None
    if own is not None:
        assert torch.equal(logits(loaded, ids), own)
        assert (own - want).abs().max() > 1e-3 * want.abs().max()  # what rounding the inputs changes


class RoundedProduct(torch.autograd.Function):
    """A linear layer as TF32 computes it: factors have 10 bits of mantissa, sums are float32."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, linear: Callable[..., torch.Tensor]) -> torch.Tensor:
        ctx.save_for_backward(weight)
        return linear(rounded(x), rounded(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return rounded(gradients[0]) @ rounded(weight), None, None


def rounded(x: torch.Tensor) -> torch.Tensor:
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.fixture
def tf32(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Round products where TF32 is allowed, as a GPU would; gives the list of what was allowed, product by product."""
    linear, allowed = nn.functional.linear, []

    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        allowed.append(torch.get_float32_matmul_precision())
        if allowed[-1] != "high" or x.dtype != torch.float32:
            return linear(x, weight, bias)
        found: torch.Tensor = RoundedProduct.apply(x, weight, linear)
        return found if bias is None else found + bias

    monkeypatch.setattr(nn.functional, "linear", product)
    return allowed


def test_f_is_exact_where_gradients_may_be_rounded(tf32: list[str]) -> None:
    """F at the ends of panels, which sums are compared with, equals the float32 copy's; gradients are near its."""
    loaded = make_loaded("llama", dtype=torch.bfloat16, initializer_range=SCALE)
    generation = answered(loaded)
    float32 = replace(loaded, model=copy.deepcopy(loaded.model).float())
    want = layer_integrated_gradients(float32, generation)
    assert want.certificate is not None
    assert set(tf32) == {"highest"}
    with full_precision(loaded) as exact:
        assert torch.equal(torch.tensor(replay(exact, generation).f), torch.tensor(replay(float32, generation).f))
        tf32.clear()
        got = layer_integrated_gradients(exact, generation)
    assert got.certificate is not None
    assert set(tf32) == {"highest", "high"}
    assert torch.equal(got.certificate.f_input, want.certificate.f_input)
    assert torch.equal(got.certificate.f_baseline, want.certificate.f_baseline)
    difference = (got.values - want.values).abs().max()
    assert 0 < difference < 2e-3 * want.values.abs().max()
    assert got.certificate.nodes == want.certificate.nodes
    assert got.certificate.floor is None


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_no_graph_keeps_cast_weights(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the gradients of a model whose float32 copy does not fit would need the copy all the same."""
    loaded = make_loaded(architecture, dtype=torch.bfloat16)
    shapes = {tuple(p.shape) for p in loaded.model.parameters() if p.dim() == 2}
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with in_place(loaded, monkeypatch) as exact, frozen_eval(loaded.model):
        ids = list(range(10, 21))
        x = embed(exact.model, ids)[None].requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            forward_logits(exact.model, x, ids=ids, positions=[10]).sum().backward()
    assert kept
    assert not [tuple(t.shape) for t in kept if {tuple(t.shape), tuple(t.shape)[::-1]} & shapes]
    assert x.grad is not None
    assert x.grad.abs().max() > 0


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize("at_once", [1, 30, 10**6])
def test_weights_are_cast_some_rows_at_a_time(
    kind: type, stored: torch.dtype, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The product and its gradient are those of the whole cast matrix, whatever number of rows is cast at once."""
    monkeypatch.setattr(module, "IN_CACHE", at_once)
    torch.manual_seed(0)
    layer = (nn.Linear(7, 23) if kind is nn.Linear else Conv1D(23, 7)).to(stored)
    nn.init.normal_(layer.bias)
    whole = copy.deepcopy(layer).float()
    x = torch.randn(2, 3, 7, requires_grad=True)
    x_of_whole = x.detach().clone().requires_grad_()
    seed = torch.randn(2, 3, 23).transpose(0, 1).contiguous().transpose(0, 1)  # gradients need not be contiguous
    with computing(layer, torch.float32):
        found = layer(x)
        found.backward(seed)
    whole(x_of_whole).backward(seed)
    torch.testing.assert_close(found, whole(x_of_whole), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.grad, x_of_whole.grad, rtol=0, atol=1e-5)
    assert layer.weight.dtype == stored
    assert layer.weight.grad is None


def test_a_gradient_of_many_parts_is_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, each of 2,048 sums would round; the reference is in float64."""
    torch.manual_seed(0)
    layer, seed = nn.Linear(16, 2048, bias=False), torch.randn(5, 2048).to(torch.bfloat16)
    want = seed.double() @ layer.weight.detach().to(torch.bfloat16).double()
    errors = []
    for at_once in (16, 10**6):
        monkeypatch.setattr(module, "IN_CACHE", at_once)
        x = torch.zeros(5, 16, dtype=torch.bfloat16, requires_grad=True)
        with computing(layer, torch.bfloat16):
            layer(x).backward(seed)
        assert x.grad is not None
        errors.append(float((x.grad.double() - want).norm() / want.norm()))
    assert errors[0] < 2 * errors[1] < 1e-2


class Scaled(nn.Embedding):
    """As in Gemma: the scale is rounded to what the table computes in."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) * torch.tensor(33.9411).to(self.weight.dtype)


@pytest.mark.parametrize("kind", [nn.Embedding, Scaled])
def test_of_a_table_of_embeddings_the_rows_of_the_text_are_cast(kind: type[nn.Embedding]) -> None:
    """This one would have 1.6 TB in float32; what is looked up equals that of a small table which is cast whole."""
    torch.manual_seed(0)
    rows = torch.randn(1, 4, dtype=torch.bfloat16)
    huge, small = kind(1, 4), kind(3, 4)
    huge.weight = nn.Parameter(rows.expand(10**11, 4), requires_grad=False)
    small.weight = nn.Parameter(rows.expand(3, 4).float(), requires_grad=False)
    with computing(huge, torch.float32):
        found = huge(torch.tensor([[0, 10**11 - 1]]))
    assert found.dtype == torch.float32
    assert torch.equal(found, small(torch.tensor([[0, 2]])))
    assert huge.weight.dtype == torch.bfloat16


class Sliced(nn.Embedding):
    """As Whisper's positions."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.weight[: ids.shape[1]]


def test_a_short_table_may_be_read_without_a_look_up() -> None:
    table = Sliced(5, 4, dtype=torch.bfloat16)
    with computing(table, torch.float32):
        found = table(torch.zeros(1, 3, dtype=torch.long))
    assert torch.equal(found, table.weight[:3].float())


def test_modules_stored_in_float32_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).to(torch.bfloat16))
    with computing(model, torch.float32):
        assert "forward" not in model[0].__dict__
        assert model(torch.ones(1, 2)).dtype == torch.float32
    assert "forward" not in model[1].__dict__


def test_casts_of_8_bit_products_are_not_logged_and_other_messages_are(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    cast = "MatMul8bitLt: inputs will be cast from %s to float16 during quantization"
    with frozen_eval(nn.Linear(1, 1)):
        logger.warning(cast, torch.float32)
        logger.warning("another")
    logger.warning(cast, torch.float32)
    assert [record.msg for record in caplog.records] == ["another", cast]


def test_gradients_have_their_own_dtype_where_no_copy_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a second copy of the weights, which there is no room for either."""
    loaded = make_loaded("llama", dtype=torch.bfloat16, initializer_range=SCALE)
    ids = list(range(10, 18))
    with in_place(loaded, monkeypatch) as exact:
        fast = in_dtype(exact, torch.bfloat16)
        assert fast.model is loaded.model
        assert fast.dtype == torch.bfloat16
        with computing_in(fast):
            assert torch.equal(logits(fast, ids), logits(loaded, ids))
        generation = answered(loaded)
        options = {"n_steps": 2, "features": "all"}
        slow, quick = (
            layer_integrated_gradients(exact, generation, compute=Compute(gradient_dtype=name), **options)
            for name in (None, "bfloat16")
        )
    difference = (slow.values - quick.values).abs().max() / slow.values.abs().max()
    assert 1e-4 < difference < 0.1
    assert quick.settings["gradient_dtype"] == "bfloat16"


class Fp8Linear(nn.Module):
    """A linear layer whose weights are stored in 8 bits with a scale, as in checkpoints of fp8."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.scale = float(linear.weight.detach().abs().max()) / 448
        stored = (linear.weight.detach().float() / self.scale).to(torch.float8_e4m3fn)
        self.weight = nn.Parameter(stored, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.scale if self.weight.element_size() == 1 else 1.0  # weights of another dtype have none
        return nn.functional.linear(x, (scale * self.weight.float()).to(x.dtype))


def test_weights_in_fp8_keep_the_dtype_of_their_kernels() -> None:
    loaded = make_loaded("llama", dtype=torch.bfloat16, initializer_range=SCALE)
    loaded = replace(loaded, model=copy.deepcopy(loaded.model), quantization="fp8")
    wide = copy.deepcopy(loaded.model).float()
    for model in (loaded.model, wide):
        mlp = model.model.layers[1].mlp
        mlp.down_proj = Fp8Linear(mlp.down_proj)
    ids = list(range(10, 18))
    want = logits(replace(loaded, model=wide), ids)
    with full_precision(loaded) as exact:
        assert exact.computing == torch.float32
        got = logits(exact, ids)
        assert rounds_activations(exact)
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


@pytest.mark.parametrize("copies", [True, False])
def test_a_model_with_kernels_for_16_bits_attends_with_others(copies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """flash-attn takes 16 bits only, so float32 would be refused, or rounded on the way."""
    loaded = make_loaded("llama", dtype=torch.bfloat16, initializer_range=SCALE, attn_implementation="sdpa")
    ids = list(range(10, 18))
    with full_precision(loaded) as exact:
        want = logits(exact, ids)
    loaded.model.config._attn_implementation_internal = "flash_attention_2"
    with full_precision(loaded) if copies else in_place(loaded, monkeypatch) as exact:
        got = logits(exact, ids)
    assert (got - want).abs().max() < 1e-5 * want.abs().max()
    assert loaded.model.config._attn_implementation == "flash_attention_2"


def matmuls() -> list[str]:
    return [module.BACKENDS.fp32_precision, *(place.fp32_precision for place in module.MATMULS)]


@pytest.fixture
def newer_interface() -> Iterator[Any]:
    yield module.BACKENDS
    module.BACKENDS.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    for place in module.MATMULS:
        place.fp32_precision = "none"


@pytest.mark.parametrize("everything", [True, False])
def test_products_set_by_the_newer_interface(everything: bool, newer_interface: Any) -> None:
    """The older one no longer says what is set; both are as before afterwards."""
    place = newer_interface if everything else newer_interface.cuda.matmul
    place.fp32_precision = "tf32"
    before = matmuls()
    with module.exact_products():
        assert torch.get_float32_matmul_precision() == "highest"
        assert module.products_allowed() == "ieee ieee"
        with module.tf32_products():
            assert torch.get_float32_matmul_precision() == "high"
            assert module.products_allowed() == "tf32 tf32"
        assert torch.get_float32_matmul_precision() == "highest"
    assert matmuls() == before
    newer_interface.fp32_precision = "ieee"  # what followed the setting for everything still does
    assert matmuls() == (["ieee"] * 3 if everything else ["ieee", "tf32", "ieee"])
    assert product_rate(torch.device("cpu"), torch.float32) > 0
