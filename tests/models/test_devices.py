"""Models spread over two devices: every tensor is where it is used, and the numbers are those of one device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from devices import MixedDevicesError, Seen, fake_devices, moved, spread, watched
from tiny import answered, certificate_of, make_classifier, make_encoder_decoder, make_loaded, prompt_tokens

from llmxai import Explanation, explain
from llmxai.generation import Decoding, chat_inputs, encode_messages, force_response, generate
from llmxai.methods import (
    METHODS,
    attention_rollout,
    deletion_path,
    layer_integrated_gradients,
    measure_effects,
    token_targets,
)
from llmxai.methods.attention import capture
from llmxai.models import LoadedModel
from llmxai.models.precision import full_precision
from llmxai.settings import Compute, IntegratedGradients, Removal, Settings
from llmxai.types import Scores

PROMPT = "The capital of France"
FEW = Settings(gradients=IntegratedGradients(max_nodes=16))
MODELS: dict[str, Callable[[], LoadedModel]] = {
    "llama": lambda: make_loaded("llama"),
    "gpt2, its head on the first device": lambda: make_loaded("gpt2"),
    "windows": lambda: make_loaded("gemma3_text"),
    "maps computed whole": lambda: make_loaded("bloom"),
    "experts": lambda: make_loaded("mixtral", experts_implementation="eager"),
    "t5": lambda: make_encoder_decoder("t5"),
    "classifier": lambda: make_classifier("bert"),
}


def require_same(got: Explanation, want: Explanation) -> None:
    assert got.generation.ids == want.generation.ids
    assert got.replay.logprobs == pytest.approx(want.replay.logprobs, abs=1e-4)
    assert set(got.scores) == set(want.scores)
    for name, scores in want.scores.items():
        found = got.scores[name]
        assert found.refused == scores.refused, name
        largest = scores.values.abs().max().clamp(min=1e-6)
        assert (found.values - scores.values).abs().max() < 1e-4 * largest, name
    assert got.effects is not None
    assert want.effects is not None
    for part in ("f_masked", "effect"):
        found, expected = (getattr(each.effects, part) for each in (got, want))
        assert torch.allclose(found, expected, atol=1e-4, equal_nan=True), part


def test_operations_on_two_devices_fail_and_gradients_flow_between_them() -> None:
    with fake_devices():
        x = torch.arange(6.0, device="lazy:0").reshape(2, 3).requires_grad_()
        weight = torch.nn.Linear(3, 4).to("lazy:0").weight
        moved = (x @ weight.T).to("lazy:1")
        there = torch.ones(4, device="lazy:1")
        assert torch.autograd.grad((moved * there).sum(), x)[0].device == torch.device("lazy:0")
        assert moved[:, torch.tensor([0])].shape == (2, 1)  # an index may be on the CPU
        assert (moved * torch.tensor(2.0)).device == torch.device("lazy:1")  # and so may a single number
        for mixed in (
            lambda: moved * x.sum(),
            lambda: moved[:, torch.tensor([0], device="lazy:0")],
            lambda: there + torch.ones(4),
            lambda: torch.ones(4)[torch.tensor([0], device="lazy:0")],
            lambda: torch.nn.functional.embedding(torch.tensor([0]), weight),
            lambda: torch.cat([there, torch.ones(4, device="lazy:0")]),
        ):
            with pytest.raises(MixedDevicesError):
                mixed()
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_generated_answer_is_explained_on_two_devices_as_on_one(make: Callable[[], LoadedModel]) -> None:
    one = make()
    with fake_devices():
        two = spread(one)
        assert {str(p.device) for p in two.model.parameters()} == {"lazy:0", "lazy:1"}
        got = explain(two, PROMPT, max_new_tokens=2, settings=FEW)
    require_same(got, explain(one, PROMPT, max_new_tokens=2, settings=FEW))


def test_every_method_on_two_devices_as_on_one() -> None:
    one, settings = make_loaded("llama", num_hidden_layers=2), replace(FEW, also=tuple(METHODS))
    with fake_devices():
        got = explain(spread(one), "The capital", response=" is", settings=settings)
    require_same(got, explain(one, "The capital", response=" is", settings=settings))


def test_pieces_of_a_long_prompt_are_hidden_on_two_devices_as_on_one() -> None:
    """Several copies of the prompt's end in one pass, whose logits lie on the last device."""
    one = make_loaded("llama", attn_implementation="sdpa", max_position_embeddings=1024)
    documents = [{"text": "The capital of Italy is Rome. " * 4}, {"text": "Hello there. The answer was short. " * 4}]
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = encode_messages(one, messages, chat_inputs(documents=documents))
    generation, removal = force_response(one, prompt, response=" Paris"), Removal(subsets=4, recomputed=300)
    want = measure_effects(one, generation, removal=removal)
    assert want.operator == "hide"
    with fake_devices():
        got = measure_effects(spread(one), generation, removal=removal)
    assert torch.allclose(got.f_without, want.f_without, atol=1e-4, equal_nan=True)
    assert torch.allclose(got.f_masked, want.f_masked, atol=1e-4)


def test_layers_of_two_devices_share_their_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate gives every layer a copy of the mask; what is known of one holds for its copies."""
    one = make_loaded(
        "gemma3_text", num_hidden_layers=6, attn_implementation="sdpa", layer_types=["sliding_attention"] * 6
    )
    generation, looked = answered(one), list[int]()
    visible = capture.visible_keys

    def counted(*arguments: Any, **options: Any) -> Any:
        looked.append(1)
        return visible(*arguments, **options)

    monkeypatch.setattr(capture, "visible_keys", counted)
    want = attention_rollout(one, generation)
    once = len(looked)
    with fake_devices():
        got = attention_rollout(spread(one), generation)
    assert (got.values - want.values).abs().max() < 1e-5
    assert len(looked) - once <= 2 * once  # once on each device


@pytest.mark.parametrize(("early", "late"), [("cpu", "lazy:0"), ("lazy:0", "cpu")])
def test_weights_that_come_to_the_device_layer_by_layer(early: str, late: str) -> None:
    one = make_loaded("llama")
    with fake_devices():
        two = spread(one, early=early, late=late)
        assert "meta" in {p.device.type for p in two.model.parameters()}
        got = explain(two, PROMPT, max_new_tokens=2, settings=FEW)
        assert got.computed["checkpoint"] is True
    require_same(got, explain(one, PROMPT, max_new_tokens=2, settings=FEW))


@pytest.mark.parametrize(("early", "late"), [("lazy:0", "lazy:1"), ("lazy:0", "cpu")])
@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
@pytest.mark.parametrize("method", [layer_integrated_gradients, deletion_path])
def test_two_precisions_of_the_same_weights(early: str, late: str, stored: str, method: Callable[..., Scores]) -> None:
    """F in float32 and gradients in 16 bits, as of a float32 copy and of a 16-bit copy of the whole model."""
    one = make_loaded("llama", dtype=getattr(torch, stored), initializer_range=0.1)
    one.model.set_attn_implementation("eager")  # as in a 16-bit copy on the CPU
    generation, compute = answered(one), Compute(checkpoint=late == "cpu")
    fast = replace(compute, gradient_dtype="bfloat16")
    with full_precision(one) as exact:
        want = [method(exact, generation, n_steps=4, compute=each) for each in (compute, fast)]
    with fake_devices(), full_precision(spread(one, early=early, late=late)) as exact:
        assert exact.dtype == torch.float32
        got = [method(exact, generation, n_steps=4, compute=each) for each in (compute, fast)]
    largest = want[0].values.abs().max()
    assert (got[0].values - want[0].values).abs().max() < 1e-5 * largest
    assert (got[1].values - want[1].values).abs().max() < 2e-2 * largest  # another kernel of the product in 16 bits
    for exact_scores, fast_scores in (want, got):
        assert torch.equal(certificate_of(exact_scores).f_baseline, certificate_of(fast_scores).f_baseline)
        assert (exact_scores.values - fast_scores.values).abs().max() > 1e-4 * largest


@pytest.mark.parametrize("method", [layer_integrated_gradients, deletion_path])
def test_the_host_waits_neither_per_node_nor_per_target_nor_per_chunk(method: Callable[..., Scores]) -> None:
    loaded, found = make_loaded("llama"), list[Seen]()
    generation = answered(loaded, response=" Paris, Rome and London")
    with fake_devices():
        loaded = moved(loaded)
        for targets, nodes, chunk in ((2, 4, 4096), (8, 16, 64)):
            compute = Compute(chunk_tokens=chunk, checkpoint=False)
            with watched() as seen:
                method(loaded, generation, targets=token_targets(generation)[:targets], n_steps=nodes, compute=compute)
            found.append(seen)
    few, many = found
    assert sum(many.kernels.values()) > 5 * sum(few.kernels.values())
    assert many.waits == few.waits
    assert not many.wide


def test_an_answer_is_generated_as_fast_as_by_transformers() -> None:
    """As many operations and waits per token as `model.generate` takes by itself, and one wait for all log-probs."""
    loaded = make_loaded("llama")
    prompt = prompt_tokens(loaded)
    ours, theirs = list[Seen](), list[Seen]()
    with fake_devices():
        loaded = moved(loaded)
        for tokens in (3, 9):
            with watched() as seen:
                found = generate(loaded, prompt, decoding=Decoding(max_new_tokens=tokens))
            ours.append(seen)
            assert found.n_targets == tokens
            ids = torch.tensor([prompt.ids], device="lazy:0")
            options = {"max_new_tokens": tokens, "do_sample": False, "return_dict_in_generate": True}
            with watched() as seen, torch.no_grad():
                loaded.model.generate(ids, attention_mask=torch.ones_like(ids), output_logits=True, **options)
            theirs.append(seen)
    per_token = [{kind: _more(*runs, kind) for kind in ("kernels", "waits")} for runs in (ours, theirs)]
    assert per_token[0]["waits"] == per_token[1]["waits"] == 1
    assert (
        per_token[1]["kernels"] <= per_token[0]["kernels"] <= per_token[1]["kernels"] + 2
    )  # its logits' view; progress
    assert ours[0].waits.total() <= theirs[0].waits.total() + 2


def _more(few: Seen, many: Seen, kind: str) -> float:
    """What each of the six further tokens took."""
    counts: list[Counter[str]] = [getattr(seen, kind) for seen in (few, many)]
    return (counts[1].total() - counts[0].total()) / 6
