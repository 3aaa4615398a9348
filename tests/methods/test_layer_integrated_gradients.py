"""Layer-integrated gradients against the slow obvious loop, against Captum, and against closed forms."""

from __future__ import annotations

import inspect
import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import LayerIntegratedGradients, LLMGradientAttribution, TextTokenInput
from hypothesis import given as given_random
from hypothesis import settings
from hypothesis import strategies as st
from tiny import SENTENCES, WINDOW, answered, certificate_of, make_loaded, make_tokenizer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GPT2Config, PreTrainedModel

from llmxai.errors import NonFiniteError, OptionError
from llmxai.generation import encode_messages, encode_prompt, force_response
from llmxai.methods import (
    Target,
    contrast_target,
    layer_integrated_gradients,
    span_target,
    token_targets,
)
from llmxai.methods.features import baseline_embedding, moving_tokens
from llmxai.methods.gradients import path_gradients
from llmxai.methods.gradients.integrated_gradients import SHARED, position_groups
from llmxai.methods.gradients.path_gradients import Node, PathFunction, make_path, path_function
from llmxai.models import LoadedModel, frozen_eval, wrap
from llmxai.models.memory import ChunkSize
from llmxai.settings import Compute, Tolerance
from llmxai.types import Generation, Role, Scores, predicting_position

STEPS = 5


def naive_integrated_gradients(
    loaded: LoadedModel,
    generation: Generation,
    targets: tuple[Target, ...],
    *,
    moving: Tensor,
    baseline: Tensor,
    n: int,
) -> Tensor:
    """[target, seq]: a target at a time, a node at a time, full logits, autograd to the embeddings."""
    model = loaded.model
    with torch.no_grad():
        x = model.get_input_embeddings()(torch.tensor([generation.ids]))[0]
    start = torch.where(moving[:, None], baseline.to(x).expand_as(x), x)
    nodes, weights = np.polynomial.legendre.leggauss(n)
    result = torch.zeros(len(targets), len(generation.ids), dtype=x.dtype)
    for row, target in zip(result, targets, strict=True):
        for node, weight in zip(nodes, weights, strict=True):
            point = (start + (node + 1) / 2 * (x - start)).requires_grad_()
            f = naive_target(model(inputs_embeds=point[None], use_cache=False).logits[0], target)
            (grad,) = torch.autograd.grad(f, point)
            row += weight / 2 * (grad * (x - start)).sum(dim=-1)
    return result


def naive_target(logits: Tensor, target: Target) -> Tensor:
    total = logits.new_zeros(())
    for k, (position, token) in enumerate(zip(target.positions, target.ids, strict=True)):
        scores = torch.log_softmax(logits[position], dim=-1) if target.kind == "logprob" else logits[position]
        total = total + scores[token] - (scores[target.foils[k]] if target.kind == "contrast" else 0.0)
    return total


def chat(loaded: LoadedModel, content: str = "Hello there", response: str = " Paris, Rome") -> Generation:
    messages = [{"role": "user", "content": content}]
    return force_response(loaded, encode_messages(loaded, messages), response=response)


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


# the slow obvious loop


@pytest.mark.parametrize("baseline", ["space", "zero", "mean", "eos", "pad", "id:7", "token:!"])
@pytest.mark.parametrize("features", ["content", "prompt", "all"])
def test_equals_the_naive_loop_on_llama(llama64: LoadedModel, features: str, baseline: str) -> None:
    generation = chat(llama64)
    got = layer_integrated_gradients(llama64, generation, features=features, baseline=baseline, n_steps=STEPS)
    want = naive_integrated_gradients(
        llama64,
        generation,
        token_targets(generation),
        moving=moving_tokens(generation, features=features),
        baseline=baseline_embedding(llama64, baseline, seq=len(generation.ids)),
        n=STEPS,
    )
    assert want.abs().max() > 1e-3
    assert difference(got.values, want) < 1e-9


@pytest.mark.parametrize(
    "architecture",
    ["gpt2", "gemma2", "gemma3_text", "mistral", "gpt_neox", "opt", "falcon", "bloom", "mixtral", "phi3", "gpt_oss"],
)
@pytest.mark.parametrize("features", ["content", "all"])
def test_equals_the_naive_loop_on_other_architectures(architecture: str, features: str) -> None:
    experts = architecture in ("mixtral", "gpt_oss")  # their matrix products know no float64
    loaded = make_loaded(architecture, dtype=torch.float32 if experts else torch.float64)
    generation = chat(loaded, content="The capital of France is Paris")
    assert len(generation.ids) > 2 * WINDOW
    assert generation.prompt_len > WINDOW
    got = layer_integrated_gradients(loaded, generation, features=features, baseline="space", n_steps=3)
    want = naive_integrated_gradients(
        loaded,
        generation,
        token_targets(generation),
        moving=moving_tokens(generation, features=features),
        baseline=baseline_embedding(loaded, "space", seq=len(generation.ids)),
        n=3,
    )
    assert want.abs().max() > 1e-3
    whole = architecture in ("gpt2", "gpt_neox", "opt", "falcon")  # the others compute norms or softmax in float32
    tolerance = 1e-9 if whole else 1e-6 if not experts else 1e-4
    assert difference(got.values, want) < tolerance * want.abs().max()


def test_a_baseline_tensor_per_position(llama64: LoadedModel) -> None:
    generation = chat(llama64)
    width = llama64.model.config.hidden_size
    baseline = torch.linspace(-0.5, 0.5, len(generation.ids) * width).view(-1, width)
    got = layer_integrated_gradients(llama64, generation, features="all", baseline=baseline, n_steps=STEPS)
    want = naive_integrated_gradients(
        llama64,
        generation,
        token_targets(generation),
        moving=torch.ones(len(generation.ids), dtype=torch.bool),
        baseline=baseline,
        n=STEPS,
    )
    assert difference(got.values, want) < 1e-9


@pytest.mark.parametrize("kind", ["logit", "logprob"])
def test_kinds_of_target_against_the_naive_loop(llama64: LoadedModel, kind: Any) -> None:
    generation = chat(llama64)
    targets = (*token_targets(generation, kind=kind), contrast_target(generation, t=1, foil=9))
    got = layer_integrated_gradients(llama64, generation, targets=targets, n_steps=STEPS)
    want = naive_integrated_gradients(
        llama64,
        generation,
        targets,
        moving=moving_tokens(generation, features="content"),
        baseline=baseline_embedding(llama64, "space", seq=len(generation.ids)),
        n=STEPS,
    )
    assert difference(got.values, want) < 1e-9


@pytest.mark.parametrize("chunk_tokens", [1, 40, 100_000])
def test_chunks_change_rounding_only(llama64: LoadedModel, chunk_tokens: int) -> None:
    generation = chat(llama64)
    want = layer_integrated_gradients(llama64, generation, n_steps=STEPS)
    got = layer_integrated_gradients(llama64, generation, n_steps=STEPS, compute=Compute(chunk_tokens=chunk_tokens))
    assert difference(got.values, want.values) < 1e-10


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt2", "opt", "gpt_neox", "falcon", "bloom"])
@pytest.mark.parametrize("n_steps", [None, STEPS])
def test_checkpointing_changes_rounding_only(architecture: str, n_steps: int | None) -> None:
    """Gradients of several targets come from one forward pass, so layers are computed again more than once.

    Some parts are float32 whatever the dtype (BLOOM's softmax): what 16 tokens more in a pass round there is 2e-8.
    """
    loaded = make_loaded(architecture, dtype=torch.float64)
    generation = chat(loaded, content="The capital of France is Paris")
    want = layer_integrated_gradients(loaded, generation, n_steps=n_steps, max_nodes=16)
    got = layer_integrated_gradients(
        loaded, generation, n_steps=n_steps, max_nodes=16, compute=Compute(checkpoint=True, chunk_tokens=64)
    )
    assert want.values.abs().max() > 1e-3
    assert difference(got.values, want.values) < 1e-6 * float(want.values.abs().max())
    assert certificate_of(got).nodes == certificate_of(want).nodes
    assert got.settings["checkpoint"] is True


def test_checkpointing_holds_fewer_activations() -> None:
    """Bytes that the graph keeps for the backward pass, counted where autograd saves them."""
    loaded = make_loaded("llama")
    generation = chat(loaded, content="The capital of France is Paris " * 4)

    def kept(compute: Compute) -> int:
        alive: dict[int, int] = {}
        most = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal most
            storage = tensor.untyped_storage()
            alive[storage.data_ptr()] = storage.nbytes()
            most = max(most, sum(alive.values()))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            layer_integrated_gradients(loaded, generation, n_steps=1, compute=compute)
        return most

    assert kept(Compute(checkpoint=True)) < kept(Compute()) / 2


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_attention_kernels_change_rounding_only(gpt64: LoadedModel, kernel: str) -> None:
    loaded = make_loaded("gpt2", dtype=torch.float64, attn_implementation=kernel)
    assert loaded.model.config._attn_implementation == kernel
    generation = chat(loaded)
    want = layer_integrated_gradients(gpt64, generation, n_steps=STEPS)
    got = layer_integrated_gradients(loaded, generation, n_steps=STEPS)
    assert difference(got.values, want.values) < 1e-10


@given_random(answer=st.text(alphabet="abcde fg", min_size=2, max_size=40), seed=st.integers(0, 10))
@settings(max_examples=5, deadline=None)
def test_targets_alone_or_together_give_the_same_numbers(gpt64: LoadedModel, answer: str, seed: int) -> None:
    generation = chat(gpt64, response=answer)
    targets = list(token_targets(generation))
    random.Random(seed).shuffle(targets)
    together = layer_integrated_gradients(gpt64, generation, targets=targets, n_steps=2)
    for t, target in enumerate(targets):
        alone = layer_integrated_gradients(gpt64, generation, targets=[target], n_steps=2)
        assert difference(together.values[t], alone.values[0]) < 1e-10
        assert together.features[t].tolist() == alone.features[0].tolist()
        several, one = certificate_of(together), certificate_of(alone)
        assert float(several.f_input[t]) == pytest.approx(float(one.f_input[0]), abs=1e-10)
        assert float(several.f_baseline[t]) == pytest.approx(float(one.f_baseline[0]), abs=1e-10)


# groups of targets


def at(position: int) -> Target:
    return Target(kind="logprob", positions=(position,), ids=(0,))


def group_cost(groups: list[list[int]], targets: list[Target], first: int) -> int:
    return sum((max(targets[t].last for t in g) + 1 - first) * (len(g) + SHARED) for g in groups)


@given_random(positions=st.lists(st.integers(10, 400), min_size=1, max_size=40))
@settings(max_examples=40, deadline=None)
def test_groups_hold_every_target_once_and_cost_no_more_than_one_group(positions: list[int]) -> None:
    targets = [at(position) for position in positions]
    groups = position_groups(targets, first=5)
    assert sorted(t for group in groups for t in group) == list(range(len(targets)))
    lasts = [targets[t].last for group in groups for t in group]
    assert lasts == sorted(lasts)
    assert group_cost(groups, targets, 5) <= group_cost([list(range(len(targets)))], targets, 5)


def test_a_short_answer_goes_through_together_and_a_long_one_in_groups() -> None:
    assert position_groups([at(40 + t) for t in range(8)], first=0) == [list(range(8))]
    targets = [at(50 + t) for t in range(300)]
    groups = position_groups(targets, first=0)
    assert len(groups) > 4
    assert group_cost(groups, targets, 0) < 0.7 * group_cost([list(range(300))], targets, 0)


def test_early_targets_of_a_long_answer_are_not_carried_to_its_end(gpt64: LoadedModel) -> None:
    generation = chat(gpt64, response=" red, green, blue" * 8)
    lengths: list[int] = []
    handle = gpt64.model.transformer.h[0].register_forward_pre_hook(
        lambda _module, inputs: lengths.append(inputs[0].shape[1])
    )
    try:
        layer_integrated_gradients(gpt64, generation, n_steps=2)
    finally:
        handle.remove()
    first = sum(role == Role.TEMPLATE for role in generation.roles[:4])
    assert min(lengths[1:]) < 0.75 * max(lengths)
    assert max(lengths) <= len(generation.ids) - first


# Captum


def captum_attribution(loaded: LoadedModel, prompt: str, target: tuple[int, ...], *, n: int) -> Tensor:
    method = LayerIntegratedGradients(loaded.model, loaded.model.get_input_embeddings())
    result = LLMGradientAttribution(method, loaded.tokenizer).attribute(
        TextTokenInput(prompt, loaded.tokenizer, baselines=0),
        target=torch.tensor(target),
        n_steps=n,
        internal_batch_size=n,
    )
    return result.token_attr


def require_captum_equal(loaded: LoadedModel, prompt: str, response: str, *, n: int) -> None:
    generation = force_response(loaded, encode_prompt(loaded, prompt), response=response)
    got = layer_integrated_gradients(loaded, generation, features="prompt", baseline="id:0", n_steps=n)
    want = captum_attribution(loaded, prompt, generation.generated_ids, n=n)
    for mine, theirs in zip(got.values[:, : generation.prompt_len], want.double(), strict=True):
        assert theirs.norm() > 1e-3
        assert (mine - theirs).norm() / theirs.norm() < 1e-3


def test_equals_captum_on_a_tiny_llama() -> None:
    require_captum_equal(make_loaded("llama"), SENTENCES[1], " short answer", n=8)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:captum")
def test_equals_captum_on_the_real_model(smollm2: LoadedModel) -> None:
    require_captum_equal(smollm2, "The capital of France is", " Paris.", n=6)


# completeness and the certificate


def check_certificate(result: Scores) -> None:
    certificate = certificate_of(result)
    net = certificate.f_input - certificate.f_baseline
    assert difference(result.values.sum(dim=1), net + certificate.gap) < 1e-9
    assert (certificate.gap.abs() <= certificate.local_error + 1e-12).all()
    assert certificate.converged == tuple((certificate.local_error <= certificate.tolerance).tolist())


@pytest.mark.parametrize("features", ["content", "prompt", "all"])
def test_converged_targets_are_complete_within_tolerance(llama64: LoadedModel, features: str) -> None:
    tolerance = Tolerance(relative=0.01, absolute=0.002)
    result = layer_integrated_gradients(llama64, chat(llama64), features=features, tolerance=tolerance, max_nodes=4096)
    check_certificate(result)
    certificate = certificate_of(result)
    net = (certificate.f_input - certificate.f_baseline).abs()
    assert all(certificate.converged)
    assert torch.allclose(certificate.tolerance, torch.maximum(0.01 * net, torch.tensor(0.002, dtype=torch.float64)))
    assert (certificate.gap.abs() <= certificate.tolerance).all()


def test_the_adaptive_result_is_the_integral(gpt64: LoadedModel) -> None:
    generation = chat(gpt64)
    tight = Tolerance(relative=1e-5, absolute=1e-5)
    got = layer_integrated_gradients(gpt64, generation, tolerance=tight, max_nodes=4096)
    want = layer_integrated_gradients(gpt64, generation, n_steps=300)
    assert all(certificate_of(got).converged)
    assert difference(got.values, want.values) < 1e-4


def test_f_is_the_replayed_logprob_at_the_input_and_at_the_baseline(llama64: LoadedModel) -> None:
    generation = chat(llama64)
    result = certificate_of(layer_integrated_gradients(llama64, generation, n_steps=2))
    path = make_path(llama64, generation, features="content", baseline="space")
    for alpha, got in ((1.0, result.f_input), (0.0, result.f_baseline)):
        with torch.no_grad():
            logits = llama64.model(inputs_embeds=path.points([alpha]), use_cache=False).logits[0]
        want = torch.stack([naive_target(logits, target) for target in token_targets(generation)])
        assert difference(got, want) < 1e-9


def test_unconverged_when_the_node_budget_is_too_small(llama64: LoadedModel) -> None:
    generation = chat(llama64)
    strict = Tolerance(relative=1e-7, absolute=1e-7)
    result = layer_integrated_gradients(llama64, generation, tolerance=strict, max_nodes=8)
    check_certificate(result)
    assert certificate_of(result).converged == (False,) * generation.n_targets
    assert max(certificate_of(result).nodes) <= 8


@pytest.mark.slow
def test_the_real_model_converges_on_content(smollm2: LoadedModel) -> None:
    messages = [{"role": "user", "content": "Which city is the capital of France?"}]
    generation = force_response(smollm2, encode_messages(smollm2, messages), response="Paris.")
    result = layer_integrated_gradients(smollm2, generation, max_nodes=256)
    certificate = certificate_of(result)
    assert all(certificate.converged)
    assert (certificate.gap.abs() <= certificate.tolerance).all()
    assert result.values.shape == (generation.n_targets, len(generation.ids))


# identities


def test_a_span_is_the_sum_of_its_tokens(gpt64: LoadedModel) -> None:
    """Exact for one set of nodes: later tokens do not reach earlier targets, and F is a sum of log-probs."""
    generation = chat(gpt64)
    tokens = layer_integrated_gradients(gpt64, generation, features="all", n_steps=STEPS)
    for first, end in ((0, None), (1, 3)):
        span = span_target(generation, first=first, end=end)
        got = layer_integrated_gradients(gpt64, generation, targets=[span], features="all", n_steps=STEPS)
        assert difference(got.values[0], tokens.values[first:end].sum(dim=0)) < 1e-10
        assert difference(certificate_of(got).f_input[0], certificate_of(tokens).f_input[first:end].sum()) < 1e-10


def test_a_contrast_is_the_difference_of_two_logits(gpt64: LoadedModel) -> None:
    generation = chat(gpt64)
    position, foil = predicting_position(generation.prompt_len, 1), 11
    logits = [Target(kind="logit", positions=(position,), ids=(i,)) for i in (generation.generated_ids[1], foil)]
    targets = [contrast_target(generation, t=1, foil=foil), *logits]
    values = layer_integrated_gradients(gpt64, generation, targets=targets, n_steps=STEPS).values
    assert difference(values[0], values[1] - values[2]) < 1e-10


def test_held_and_later_tokens_get_exactly_zero(gpt64: LoadedModel) -> None:
    generation = chat(gpt64)
    result = layer_integrated_gradients(gpt64, generation, n_steps=STEPS)
    held = torch.tensor([role in (Role.TEMPLATE, Role.BOS) for role in generation.roles])
    assert held.any()
    assert (result.values[:, held] == 0).all()
    for t in range(generation.n_targets):
        seen = predicting_position(generation.prompt_len, t) + 1
        assert (result.values[t, seen:] == 0).all()
        assert (result.values[t, :seen][~held[:seen]] != 0).all()
        assert result.features[t].tolist() == [i < seen and not h for i, h in enumerate(held.tolist())]
    assert result.settings["held"] == held.nonzero()[:, 0].tolist()


def test_generated_tokens_are_held_with_the_features_of_the_prompt(gpt64: LoadedModel) -> None:
    generation = chat(gpt64)
    result = layer_integrated_gradients(gpt64, generation, features="prompt", n_steps=STEPS)
    assert (result.values[:, generation.prompt_len :] == 0).all()
    assert (result.values[:, : generation.prompt_len] != 0).all()


# models whose right answer is known


class SumOfEmbeddings(PreTrainedModel):
    """Logits at a position: W times the sum of the embeddings up to there; linear in every embedding."""

    config_class = GPT2Config
    _is_stateful = True  # no key-value cache

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def hidden(self, x: Tensor) -> Tensor:
        return x.cumsum(dim=1)

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        logits_to_keep: Any = slice(None),
        **_: Any,
    ) -> Any:
        x = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        return SimpleNamespace(logits=self.head(self.hidden(x)[:, logits_to_keep]))


class WholeLogits(SumOfEmbeddings):
    """The same in an architecture that knows no `logits_to_keep`."""

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, **_: Any) -> Any:
        return super().forward(input_ids, inputs_embeds)


class CopyOfPosition(SumOfEmbeddings):
    """Every position from 1 on predicts the token at position 1 and looks nowhere else; the head is tied."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.head.weight = self.embeddings.weight

    def hidden(self, x: Tensor) -> Tensor:
        later = torch.arange(x.shape[1])[:, None] >= 1
        return torch.where(later, x[:, 1 % x.shape[1]][:, None], x)


def wrapped(kind: type[SumOfEmbeddings]) -> LoadedModel:
    tokenizer = make_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=64,
        n_positions=256,
        initializer_range=1.0,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return wrap(kind(config).double().eval(), tokenizer, name=kind.__name__)


@pytest.mark.parametrize("kind", [SumOfEmbeddings, WholeLogits])
def test_closed_form_on_a_linear_model(kind: type[SumOfEmbeddings]) -> None:
    """A_i = (x_i - b) . w[target], whatever the nodes; and the gap is 0."""
    linear = wrapped(kind)
    generation = answered(linear)
    targets = token_targets(generation, kind="logit")
    result = layer_integrated_gradients(linear, generation, targets=targets, features="all", baseline="id:3")
    embeddings = linear.model.embeddings.weight.detach()
    delta = embeddings[list(generation.ids)] - embeddings[3]
    for t, token in enumerate(generation.generated_ids):
        seen = predicting_position(generation.prompt_len, t) + 1
        want = delta @ linear.model.head.weight[token].detach()
        assert difference(result.values[t, :seen], want[:seen]) < 1e-12
    assert all(certificate_of(result).converged)
    assert certificate_of(result).gap.abs().max() < 1e-12


def test_one_node_is_enough_for_a_linear_model() -> None:
    linear = wrapped(SumOfEmbeddings)
    generation = answered(linear)
    targets = token_targets(generation, kind="logit")
    one = layer_integrated_gradients(linear, generation, targets=targets, n_steps=1)
    many = layer_integrated_gradients(linear, generation, targets=targets, n_steps=9)
    assert difference(one.values, many.values) < 1e-12
    assert certificate_of(one).nodes == (1,) * generation.n_targets


def test_a_copy_model_blames_the_token_it_copies() -> None:
    loaded = wrapped(CopyOfPosition)
    generation = answered(loaded, "The capital of France", " capital")
    assert generation.ids[1] == generation.generated_ids[0]
    result = layer_integrated_gradients(loaded, generation, features="all")
    certificate = certificate_of(result)
    others = [i for i in range(len(generation.ids)) if i != 1]
    assert all(certificate.converged)
    assert (result.values[0, others] == 0).all()
    assert float(result.values[0, 1]) == pytest.approx(
        float(certificate.f_input[0] - certificate.f_baseline[0]), rel=0.03
    )
    assert result.values[0, 1] > 1


# options and faults


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"features": "everything"}, ["everything", "content", "prompt", "all"]),
        ({"baseline": "black"}, ["black", "space", "zero", "id:N"]),
        ({"baseline": "id:99999"}, ["id:99999", "vocabulary"]),
        ({"baseline": "id:-1"}, ["id:-1", "Known"]),
        ({"baseline": "token:two words here"}, ["token:two words here", "one"]),
        ({"baseline": "token:"}, ["token:", "Known"]),
        ({"baseline": torch.zeros(3)}, ["(3,)", "(32,)"]),
        ({"max_nodes": 0}, ["max_nodes is 0", "at least"]),
        ({"n_steps": 0}, ["n_steps is 0"]),
    ],
)
def test_a_bad_option_says_what_came_and_what_is_known(
    tiny_llama: LoadedModel, options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(OptionError) as caught:
        layer_integrated_gradients(tiny_llama, answered(tiny_llama), **options)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_bad_chunk() -> None:
    with pytest.raises(OptionError, match="chunk_tokens is 0"):
        Compute(chunk_tokens=0)


@pytest.mark.parametrize(
    "options", [{"relative": -1.0}, {"relative": 0.0, "absolute": 0.0}, {"relative": float("nan")}]
)
def test_a_bad_tolerance(options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="tolerance"):
        Tolerance(**options)


@pytest.mark.parametrize("options", [{"positions": (1, 2), "ids": (3,)}, {"positions": (), "ids": ()}])
def test_a_target_needs_as_many_ids_as_positions(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="positions"):
        Target(kind="logprob", **options)


def test_a_contrast_needs_foils() -> None:
    with pytest.raises(OptionError, match="foils"):
        Target(kind="contrast", positions=(1,), ids=(2,))


def test_an_empty_span_is_refused(tiny_llama: LoadedModel) -> None:
    with pytest.raises(OptionError, match="positions"):
        span_target(answered(tiny_llama), first=2, end=2)


def test_nan_on_the_path_is_an_error() -> None:
    loaded = make_loaded("llama")
    generation = answered(loaded)
    with torch.no_grad():
        loaded.model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"NaN.*float32"):
        layer_integrated_gradients(loaded, generation, n_steps=2)


@pytest.mark.parametrize("missing", ["eos", "pad"])
def test_a_missing_special_token_is_no_baseline(missing: str) -> None:
    loaded = make_loaded("llama")
    setattr(loaded.tokenizer, f"{missing}_token", None)
    with pytest.raises(OptionError, match=f"no {missing} token"):
        layer_integrated_gradients(loaded, answered(loaded), baseline=missing)


def test_progress_counts_every_gradient(llama64: LoadedModel) -> None:
    calls: list[tuple[int, int]] = []
    result = layer_integrated_gradients(
        llama64, chat(llama64), progress=lambda done, wanted: calls.append((done, wanted))
    )
    nodes = sum(certificate_of(result).nodes)
    counts = [done for done, _ in calls]
    assert counts == sorted(set(counts))
    assert calls[-1] == (nodes, nodes)
    assert all(done <= wanted for done, wanted in calls)


# gradients in another dtype


def test_gradients_in_another_dtype_keep_the_certificate_exact(gpt64: LoadedModel) -> None:
    generation = chat(gpt64)
    want = layer_integrated_gradients(gpt64, generation, max_nodes=512)
    before = {name: tensor.clone() for name, tensor in gpt64.model.state_dict().items()}
    got = layer_integrated_gradients(gpt64, generation, max_nodes=512, compute=Compute(gradient_dtype="float32"))
    check_certificate(got)
    assert all(certificate_of(got).converged)
    assert difference(certificate_of(got).f_input, certificate_of(want).f_input) < 1e-12
    assert difference(got.values, want.values) < 0.05
    assert got.settings["gradient_dtype"] == "float32"
    assert all(torch.equal(before[name], tensor) for name, tensor in gpt64.model.state_dict().items())
    assert gpt64.dtype == torch.float64


def test_gradients_in_bfloat16_are_certified_against_the_models_own_f(tiny_llama: LoadedModel) -> None:
    generation = chat(tiny_llama)
    tolerance = Tolerance(relative=0.02, absolute=0.02)
    got = layer_integrated_gradients(
        tiny_llama, generation, max_nodes=1024, tolerance=tolerance, compute=Compute(gradient_dtype="bfloat16")
    )
    want = layer_integrated_gradients(tiny_llama, generation, n_steps=64)
    check_certificate(got)
    assert all(certificate_of(got).converged)
    assert difference(certificate_of(got).f_input, certificate_of(want).f_input) < 1e-4
    assert (certificate_of(got).gap.abs() <= certificate_of(got).tolerance).all()
    cosine = torch.nn.functional.cosine_similarity(got.values, want.values, dim=1)
    assert (cosine > 0.95).all()


def test_panels_that_fail_with_rounded_products_are_computed_again_without(
    tiny_llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU with TF32 products: here, sums get the noise of 10 bits unless they are asked for exactly."""
    generation = chat(tiny_llama)
    tolerance = Tolerance(relative=0.0005, absolute=0.0)
    plain = layer_integrated_gradients(tiny_llama, generation, max_nodes=512, tolerance=tolerance)
    sums, noise = PathFunction.sums, torch.Generator().manual_seed(0)

    def rounded(self: PathFunction, *arguments: Any, **options: Any) -> Any:
        found = sums(self, *arguments, **options)
        if self.exact:
            return found
        return {
            key: row * (1 + 2e-3 * torch.randn(row.shape, generator=noise, dtype=row.dtype))
            for key, row in found.items()
        }

    monkeypatch.setattr(PathFunction, "sums", rounded)
    before = layer_integrated_gradients(tiny_llama, generation, max_nodes=512, tolerance=tolerance)
    assert not all(certificate_of(before).converged)
    monkeypatch.setattr("llmxai.methods.gradients.integrated_gradients.rounds_products", lambda _loaded: True)
    got = layer_integrated_gradients(tiny_llama, generation, max_nodes=512, tolerance=tolerance)
    check_certificate(got)
    assert all(certificate_of(got).converged)
    assert got.settings["panels_computed_again_in_dtype"] > 0
    assert sum(certificate_of(got).nodes) <= 2 * sum(certificate_of(plain).nodes)
    assert difference(got.values, plain.values) < 0.01


def test_out_of_memory_halves_the_chunk_and_says_so(tiny_llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass over more than three nodes fails; the numbers are those of a run with memory to spare."""
    generation = answered(tiny_llama)
    want = layer_integrated_gradients(tiny_llama, generation, n_steps=16)
    assert want.settings["chunk_halvings"] == 0
    forward = tiny_llama.model.forward

    def narrow(*arguments: object, **options: object) -> object:
        ids = options.get("input_ids")
        if isinstance(ids, torch.Tensor) and len(ids) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return forward(*arguments, **options)

    narrow.__signature__ = inspect.signature(forward)
    monkeypatch.setattr(tiny_llama.model, "forward", narrow)
    result = layer_integrated_gradients(tiny_llama, generation, n_steps=16)
    assert result.settings["chunk_halvings"] > 0
    assert result.settings["chunk_tokens"] < want.settings["chunk_tokens"]
    assert difference(result.values, want.values) < 1e-4


def test_out_of_memory_for_one_node_is_raised(tiny_llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_arguments: object, **_options: object) -> object:
        raise torch.OutOfMemoryError("out of memory")

    never.__signature__ = inspect.signature(tiny_llama.model.forward)
    monkeypatch.setattr(tiny_llama.model, "forward", never)
    with pytest.raises(torch.OutOfMemoryError):
        layer_integrated_gradients(tiny_llama, answered(tiny_llama), n_steps=4)


# what a backward pass does besides


class Counted(TorchDispatchMode):
    """Counts operations, those with a float64 result, and numbers that Python waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.all = self.wide = self.awaited = 0

    def __torch_dispatch__(self, function: Any, _types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        self.all += 1
        self.awaited += function is torch.ops.aten._local_scalar_dense.default
        self.wide += any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in tree_leaves(result))
        return result


def test_a_backward_pass_waits_for_nothing_and_widens_nothing() -> None:
    """Sums are made on the device and leave it once a round, however many targets and nodes there are."""
    loaded = make_loaded("llama")
    generation = chat(loaded, response=" Paris, Rome, red, green, blue")
    path = make_path(loaded, generation, features="content", baseline="space")

    def counts(targets: int, nodes: int) -> Counted:
        chosen = token_targets(generation)[:targets]
        with frozen_eval(loaded.model):
            function = path_function(loaded, path, chosen, size=ChunkSize(1024))
            work = [Node(k / nodes, tuple(range(targets)), weight=1.0, panel=k // 4) for k in range(nodes)]
            with Counted() as counted:
                function.sums(work)
        return counted

    few, many, longer = counts(1, 4), counts(8, 4), counts(8, 8)
    assert few.awaited == many.awaited == longer.awaited <= 4
    assert few.wide == many.wide <= 12
    assert many.all < 12 * few.all
    assert longer.all <= many.all + 2 * 8  # more nodes, the same passes; only the sums on the CPU grow


def test_a_panel_whose_nodes_go_through_in_several_chunks(gpt64: LoadedModel) -> None:
    generation = chat(gpt64)
    targets = token_targets(generation)
    path = make_path(gpt64, generation, features="content", baseline="space")
    nodes = [Node(k / 8, tuple(range(len(targets))) if k < 6 else (1,), weight=0.1 + k, panel=k // 3) for k in range(9)]
    nodes = [replace(node, targets=nodes[3 * node.panel].targets) for node in nodes]
    with frozen_eval(gpt64.model):
        whole, single = (path_function(gpt64, path, targets, size=ChunkSize(size)).sums(nodes) for size in (10**6, 1))
    assert set(whole) == set(single) == {(node.panel, t) for node in nodes for t in node.targets}
    for pair, values in whole.items():
        assert difference(values, single[pair]) < 1e-10 * float(values.abs().max())


def test_a_short_prefix_of_a_long_text_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the kernel knows that the mask is causal: it gets none, so no layer saves one of length x length."""
    loaded = make_loaded("llama", attn_implementation="sdpa")
    generation = answered(loaded)
    kernel = torch.nn.functional.scaled_dot_product_attention
    masks: list[bool] = []

    def seen(*tensors: torch.Tensor, attn_mask: torch.Tensor | None = None, **options: Any) -> torch.Tensor:
        masks.append(attn_mask is not None)
        return kernel(*tensors, attn_mask=attn_mask, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", seen)
    values = []
    for least, share, masked in ((512, 0.1, True), (1, 1.0, False), (1, 0.0, True)):
        monkeypatch.setattr(path_gradients, "LONG", least)
        monkeypatch.setattr(path_gradients, "SHORT", share)
        masks.clear()
        values.append(layer_integrated_gradients(loaded, generation, n_steps=4).values)
        assert any(masks) is masked
    assert torch.equal(values[0], values[2])
    assert torch.allclose(values[0], values[1], rtol=1e-3, atol=1e-6)
