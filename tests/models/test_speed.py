"""Operations, rates, and what they predict."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable

import pytest
import torch
from tiny import make_loaded
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from llmxai import explain
from llmxai.methods import Target
from llmxai.methods.gradients.integrated_gradients import position_groups
from llmxai.models import speed
from llmxai.models.memory import Shape
from llmxai.models.speed import in_words, predicted_seconds

CPU = torch.device("cpu")


def test_operations_are_those_of_the_matrices() -> None:
    loaded = make_loaded("llama", attn_implementation="eager")  # the counter knows no other attention on a CPU
    layers = loaded.model.model.layers
    matrices = sum(m.weight.numel() for m in layers.modules() if isinstance(m, nn.Linear))
    assert speed.layer_weights(loaded.model) == matrices
    with FlopCounterMode(display=False) as counter:
        loaded.model.model(inputs_embeds=torch.randn(1, 50, 32), use_cache=False)
    # the counter takes attention over all keys, of which a causal mask leaves half
    attention = 2 * 3 * 32 * 50**2
    assert counter.get_total_flops() == pytest.approx(
        speed.layer_operations(loaded.model, tokens=50) + attention, rel=0.02
    )


def test_the_rate_of_products_is_measured_once_and_draws_no_random_number() -> None:
    state = torch.get_rng_state()
    rates = [speed.product_rate(torch.device("cpu"), torch.float32) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert rates[0] == rates[1] > 1e8


def test_a_nearly_full_device_is_measured_with_less(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def fastest(_device: torch.device, work: Callable[[], Tensor | None]) -> float:
        found = work()
        sizes.append(0 if found is None else found.nbytes)
        return 1.0

    monkeypatch.setattr(speed, "_fastest", fastest)
    found = []
    for free in (2**40, 2**23):
        monkeypatch.setattr(speed, "free_memory", lambda _device, free=free: free)
        found.append((speed._rate.__wrapped__(CPU, torch.float64, ""), speed.streaming_rate.__wrapped__(CPU)))
    products, traffic = zip(*found, strict=True)
    assert products[0] == 2 * speed.SIDE["cpu"] ** 3
    assert traffic[0] == 2 * 4 * speed.NUMBERS["cpu"]
    assert 3 * 8 * (products[1] / 2) ** (2 / 3) == pytest.approx(2**21, rel=0.01)
    assert traffic[1] == 2**21
    assert max(sizes[2:]) <= 2**21


def test_of_experts_those_count_that_a_token_meets() -> None:
    """Two of four; the router, attention and norms as they are."""
    model = make_loaded("mixtral").model
    experts = [p.numel() for p in model.model.layers.parameters() if p.dim() == 3]
    others = [p.numel() for p in model.model.layers.parameters() if p.dim() == 2]
    assert speed.layer_weights(model) == sum(experts) / 2 + sum(others)


def test_what_must_grow_grows() -> None:
    model = make_loaded("llama").model

    def seconds(tokens: int, targets: int) -> float:
        return predicted_seconds(model, tokens=tokens, targets=targets, device=CPU, dtype=torch.float32)

    for tokens, targets in itertools.product((32, 512, 8192), (1, 16)):
        assert seconds(2 * tokens, targets) > 1.9 * seconds(tokens, targets)
        assert seconds(tokens, 2 * targets) > seconds(tokens, targets)
    assert seconds(8192, 256) > 8 * seconds(8192, 16)


def test_rates_twice_as_high_take_half_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_loaded("llama").model
    found = []
    for rate in (1e9, 2e9):
        monkeypatch.setattr(speed, "product_rate", lambda _device, _dtype, rate=rate: rate)
        monkeypatch.setattr(speed, "streaming_rate", lambda _device, rate=rate: rate)
        found.append(predicted_seconds(model, tokens=100, targets=4, device=CPU, dtype=torch.float32))
    assert found[0] == pytest.approx(2 * found[1])


@pytest.mark.parametrize(("tokens", "targets"), [(64, 1), (64, 8), (128, 64), (320, 256), (2048, 16)])
def test_the_mean_length_of_groups_is_that_of_the_groups(tokens: int, targets: int) -> None:
    """Their passes x lengths, over the passes of one group of all targets."""
    chosen = [Target(kind="logprob", positions=(tokens - targets - 1 + t,), ids=(1,)) for t in range(targets)]
    groups = position_groups(chosen, first=0)
    cost = sum((chosen[group[-1]].last + 1) * (len(group) + speed.SHARED) for group in groups)
    assert speed.grouped(tokens, targets) == pytest.approx(cost / (targets + speed.SHARED), rel=0.03)


@pytest.mark.parametrize("widened", [False, True])
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("method", ["layer_integrated_gradients", "deletion_path"])
def test_a_path_takes_its_products_and_its_traffic(
    method: str, checkpoint: bool, widened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand, for a Llama of 3 layers: hidden 32, 4 heads of 8 (2 for keys and values), 48 wide, vocabulary V."""
    model = make_loaded("llama").model
    c = model.config
    assert (c.num_hidden_layers, c.hidden_size, c.num_attention_heads, c.num_key_value_heads) == (3, 32, 4, 2)
    assert c.intermediate_size == 48
    monkeypatch.setattr(speed, "product_rate", lambda _device, _dtype: 1e6)
    monkeypatch.setattr(speed, "streaming_rate", lambda _device: 1e7)
    passes = {"points": 2, "forwards": 4, "backwards": 12}
    options = {"together": 2, "device": CPU, "dtype": torch.float32, "checkpoint": checkpoint, "widened": widened}
    got = speed.path_seconds(model, method, tokens=10, targets=3, **passes, **options)
    layers = 18 + 12 * checkpoint  # passes through the layers, which a checkpointed one computes once more
    weights = 3 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    attention = 2 * 3 * 32 * 10**2 * (2.5 if method == "deletion_path" else 1.6)
    assert speed.grouped(10, 3) == 10  # one group
    products = layers * (2 * weights * 10 + attention) + 6 * 2 * 32 * c.vocab_size * 3
    kept = 3 * 10 * 4 * (2 * 32 + 4 * 32 + 3 * 48)
    traffic = layers * speed.TRAFFIC["cpu"] * kept + (1 + layers / 2) * weights * (2 + 4 + 4 if widened else 4)
    assert got == pytest.approx(products / 1e6 + traffic / 1e7)


def test_what_was_measured_on_a_gpu_is_predicted_within_a_quarter(monkeypatch: pytest.MonkeyPatch) -> None:
    """benchmarks/GPU.md, uncompiled: TFLOP/s of a pass; the memory of an H100 moves about 3 TB/s."""
    shapes = {
        "1B": Shape(16, 2048, 32, 64, 8192, 3, 2, True, 128256),
        "8B": Shape(32, 4096, 32, 128, 14336, 3, 2, True, 128256),
    }
    weights = {"1B": 16 * (2 * 2048 * 2560 + 3 * 2048 * 8192), "8B": 32 * (2 * 4096 * 5120 + 3 * 4096 * 14336)}
    monkeypatch.setattr(speed, "streaming_rate", lambda _device: 3e12)
    gpu = torch.device("cuda")
    model = make_loaded("llama").model
    rows = (("1B", torch.bfloat16, 747.6, 248), ("1B", torch.float32, 400.7, 111), ("8B", torch.bfloat16, 747.6, 337))
    for size, dtype, rate, measured in rows:
        monkeypatch.setattr(speed.Shape, "of", lambda _config, size=size: shapes[size])
        monkeypatch.setattr(speed, "layer_weights", lambda _model, size=size: weights[size])
        operations = speed.layer_operations(model, tokens=528)
        beside = speed.traffic_seconds(model, tokens=528, device=gpu, dtype=dtype)
        predicted = operations / (operations / (rate * 1e12) + beside)
        assert predicted / 1e12 == pytest.approx(measured, rel=0.25), (size, dtype)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((0.2, "about 0 seconds"), (1.0, "about 1 second"), (89.0, "about 89 seconds"), (90.0, "about 1.5 minutes")),
        *((180.0, "about 3 minutes"), (1000.0, "about 17 minutes"), (9000.0, "about 2.5 hours")),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_explain_says_so_if_it_takes_more_than_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = make_loaded("llama")
    pipeline = importlib.import_module("llmxai.explain")  # the package has a function of that name
    for rate, said in ((1e3, True), (1e15, False)):
        monkeypatch.setattr(pipeline, "SHORT", 0)
        monkeypatch.setattr(speed, "product_rate", lambda _device, _dtype, rate=rate: rate)
        stages: list[str] = []
        explain(loaded, "Hello", response=" Paris", progress=lambda stage, _done, _all, to=stages: to.append(stage))
        assert any(stage.startswith("expected to take about ") for stage in stages) is said
