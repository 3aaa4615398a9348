"""The deletion path against finite differences, closed forms, real masks and a slow loop over eager attention."""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as given_random
from hypothesis import settings
from hypothesis import strategies as st
from tiny import (
    ARCHITECTURES,
    CLASSIFIERS,
    ENCODER_DECODERS,
    HYBRIDS,
    WINDOW,
    answered,
    certificate_of,
    make_classifier,
    make_encoder_decoder,
    make_loaded,
    make_tokenizer,
    save_wide,
)
from torch import Tensor, nn
from transformers import GPT2Config, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from llmxai.errors import NonFiniteError, OptionError, UnsupportedModelError
from llmxai.generation import answer, encode_messages, encode_prompt, force_response, replay
from llmxai.methods import METHODS, Target, deletion_path, span_target, token_targets
from llmxai.methods.features import moving_tokens
from llmxai.methods.gradients import fused
from llmxai.methods.gradients.deletion_path import POWER, PRESENCE, fuses, presence_path
from llmxai.methods.gradients.path_gradients import Node, path_function
from llmxai.models import LoadedModel, frozen_eval, load, wrap
from llmxai.models.memory import ChunkSize
from llmxai.settings import Compute, Tolerance
from llmxai.types import Generation, Role, Scores, predicting_position

STEPS = 5
TEXT = "The capital of France is Paris"
EXPERTS = ("mixtral", "gpt_oss")
"""Their matrix products know no float64."""
WHOLE = ("gpt2", "falcon")
"""Float64 throughout; the others compute norms, angles or the eager softmax in float32."""


def chat(loaded: LoadedModel, content: str = TEXT, response: str = " Paris, Rome") -> Generation:
    return force_response(loaded, encode_messages(loaded, [{"role": "user", "content": content}]), response=response)


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


# the slow loop: an eager copy whose attention modules get log a added to their masks, one node and target at a time


def eager_copy(model: PreTrainedModel) -> PreTrainedModel:
    copy: PreTrainedModel = type(model)._from_config(model.config, attn_implementation="eager").to(model.dtype)
    copy.load_state_dict(model.state_dict())
    return copy.eval().requires_grad_(False)


def score_bias(presence: Tensor, *, queries: int, two_way: bool) -> Tensor:
    """[query, key]: log a of the key for later queries (all others where tokens are read both ways)."""
    logs = presence.log()
    rows = []
    for q in range(queries):
        sees = [k != q and (two_way or k < q) for k in range(len(presence))]
        rows.append(torch.where(torch.tensor(sees), logs, torch.zeros_like(logs)))
    return torch.stack(rows)


@contextmanager
def biased(model: PreTrainedModel, presence: Tensor, *, source: int, two_way: bool) -> Iterator[None]:
    """Inside, every attention module of an eager model adds the bias to the mask that it is given."""
    inner = {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__.endswith("Attention")
        and not any(type(child).__name__.endswith("Attention") for child in list(module.modules())[1:])
        and not type(module).__name__.startswith("T5Layer")
    }

    def adding(name: str) -> Callable[..., Any]:
        def add(_module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
            key = "mask" if "mask" in options else "attention_mask"
            n = len(presence)
            if not source:
                bias = score_bias(presence, queries=n, two_way=two_way)
            elif ".encoder." in f".{name}" and "encoder_attn" not in name:
                bias = score_bias(presence[:source], queries=source, two_way=True)
            elif "encoder_attn" in name or "EncDec" in name:
                bias = presence[:source].log().expand(n - source, -1)
            else:
                bias = score_bias(presence[source:], queries=n - source, two_way=False)
            mask = options[key]
            return arguments, {**options, key: bias if mask is None else mask + bias}

        return add

    handles = [module.register_forward_pre_hook(adding(name), with_kwargs=True) for name, module in inner.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def naive_f(model: PreTrainedModel, generation: Generation, targets: tuple[Target, ...], presence: Tensor) -> Tensor:
    """[target]: F of log-prob targets, `presence` [seq up to the last predicting position]."""
    n, source = len(presence), generation.source_len
    with torch.no_grad():
        x = model.get_input_embeddings()(torch.tensor([generation.ids[:n]]))
    with biased(model, presence, source=source, two_way=bool(generation.classes)):
        if generation.classes:
            rows = model(inputs_embeds=x).logits.expand(n, -1)
        elif source:
            sides = {"inputs_embeds": x[:, :source], "decoder_inputs_embeds": x[:, source:]}
            decoded = model(**sides, use_cache=False).logits[0]
            rows = torch.cat([decoded.new_zeros(source, decoded.shape[1]), decoded])
        else:
            rows = model(inputs_embeds=x, use_cache=False).logits[0]
    logprobs = torch.log_softmax(rows if rows.dtype == torch.float64 else rows.float(), dim=-1)
    return torch.stack([logprobs[list(t.positions), list(t.ids)].sum() for t in targets])


def naive_deletion_path(loaded: LoadedModel, generation: Generation, *, moving: Tensor, n: int) -> Tensor:
    """[target, seq]: dF/da by autograd at a = u^3, times 3 u^2, at Gauss-Legendre nodes in u."""
    model, targets = eager_copy(loaded.model), token_targets(generation)
    live = max(t.last for t in targets) + 1
    result = torch.zeros(len(targets), len(generation.ids), dtype=torch.float64)
    nodes, weights = np.polynomial.legendre.leggauss(n)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        one = torch.ones(live, dtype=loaded.dtype)
        presence = torch.where(moving[:live], node**POWER * one, one).requires_grad_()
        values = naive_f(model, generation, targets, presence)
        for t, value in enumerate(values):
            (gradient,) = torch.autograd.grad(value, presence, retain_graph=True)
            result[t, :live] += weight * POWER * node ** (POWER - 1) * (gradient * moving[:live]).double()
    return result


def require_equal_to_the_loop(loaded: LoadedModel, generation: Generation, features: str, tolerance: float) -> Scores:
    got = deletion_path(loaded, generation, features=features, n_steps=3)
    moving = presence_path(loaded, generation, features=features).moving
    want = naive_deletion_path(loaded, generation, moving=moving, n=3)
    assert want.abs().max() > 1e-3
    assert difference(got.values, want) < tolerance * float(want.abs().max())
    check_certificate(got)
    return got


def check_certificate(result: Scores) -> None:
    certificate = certificate_of(result)
    net = certificate.f_input - certificate.f_baseline
    assert difference(result.values.sum(dim=1), net + certificate.gap) < 1e-9
    assert (certificate.gap.abs() <= certificate.local_error + 1e-12).all()
    assert certificate.converged == tuple((certificate.local_error <= certificate.tolerance).tolist())
    assert (result.values[~result.features] == 0).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("features", ["content", "all"])
def test_equals_the_slow_loop(architecture: str, features: str) -> None:
    loaded = make_loaded(architecture, dtype=torch.float32 if architecture in EXPERTS else torch.float64)
    generation = chat(loaded)
    assert generation.prompt_len > WINDOW
    assert len(generation.ids) > 2 * WINDOW
    tolerance = 1e-9 if architecture in WHOLE else 1e-3 if architecture in EXPERTS else 1e-5
    require_equal_to_the_loop(loaded, generation, features, tolerance)


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_a_classifier_equals_the_slow_loop(architecture: str) -> None:
    """A token is hidden from all others, before it and behind."""
    loaded = make_classifier(architecture)
    got = require_equal_to_the_loop(loaded, answer(loaded, f"{TEXT}, and the answer was short."), "content", 1e-4)
    moving = [role is Role.USER for role in answer(loaded, f"{TEXT}, and the answer was short.").roles]
    assert got.features[0].tolist() == moving
    assert (got.values[0, moving] != 0).all()


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
@pytest.mark.parametrize("features", ["content", "prompt", "all"])
def test_an_encoder_decoder_equals_the_slow_loop(architecture: str, features: str) -> None:
    """Source tokens fade in the encoder and across, answer tokens in the decoder."""
    loaded = make_encoder_decoder(architecture)
    loaded.model.double()
    generation = force_response(loaded, encode_prompt(loaded, TEXT), response=" Rome, 1 2")
    got = require_equal_to_the_loop(loaded, generation, features, 1e-5)
    source = generation.source_len
    assert (got.values[:, : source - 1] != 0).all()
    assert (got.values[:, source - 1] == 0).all()  # the decoder must see one token
    written = got.features[:, source:]
    assert written[-1, generation.prompt_len - source : -2].all() == (features != "prompt")


def test_a_source_as_long_as_the_answer() -> None:
    """The three attentions have one shape then, and are told apart all the same."""
    loaded = make_encoder_decoder("bart")
    loaded.model.double()
    generation = force_response(loaded, encode_prompt(loaded, "The capital"), response=" 1 2 1 2 1 2")
    source = generation.source_len
    cut = Generation(
        **{
            **{name: getattr(generation, name) for name in ("request", "stop", "logprobs", "prompt_len", "source_len")},
            **{name: getattr(generation, name)[: 2 * source + 1] for name in ("ids", "roles", "texts")},
            "words": (),
        }
    )
    assert max(t.last for t in token_targets(cut)) + 1 == 2 * source
    require_equal_to_the_loop(loaded, cut, "content", 1e-5)


@pytest.fixture(params=["on CPUs", "behind a mask"])
def fused_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Both forms of the fused kernel at any length; gives the shapes of the queries that went through it."""
    module = importlib.import_module("llmxai.methods.gradients.deletion_path")
    if request.param == "behind a mask":
        monkeypatch.setattr(fused._OnCpu, "apply", fused.behind_a_mask)
    own, shapes = module.fused_attention, []

    def counted(query: Tensor, *rest: Any) -> Tensor:
        shapes.append(tuple(query.shape))
        return own(query, *rest)

    monkeypatch.setattr(module, "FUSED_FROM", 0)
    monkeypatch.setattr(module, "fused_attention", counted)
    return shapes


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gpt_neox", "opt", "mistral", "gemma2"])
@pytest.mark.parametrize("features", ["content", "all"])
def test_the_fused_kernel_equals_the_slow_loop(
    architecture: str, features: str, fused_kernel: list[tuple[int, ...]]
) -> None:
    """Also behind a cached prefix (`content`), with grouped heads, and where windows leave the plain kernel."""
    loaded = make_loaded(architecture, dtype=torch.float64)
    generation = chat(loaded)
    windows = architecture in ("mistral", "gemma2")
    assert fuses(loaded.model, tokens=1) is not windows
    require_equal_to_the_loop(loaded, generation, features, 1e-5)
    assert bool(fused_kernel) is not windows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_fused_kernel_in_other_dtypes(dtype: torch.dtype, fused_kernel: list[tuple[int, ...]]) -> None:
    wide = make_loaded("llama", dtype=torch.float64)
    generation = chat(wide)
    narrow = replace(wide, model=copy.deepcopy(wide.model).to(dtype))
    got, want = (deletion_path(one, generation, n_steps=4) for one in (narrow, wide))
    assert fused_kernel
    tolerance = {torch.float32: 1e-4, torch.float16: 0.05, torch.bfloat16: 0.3}[dtype]
    assert difference(got.values, want.values) < tolerance * float(want.values.abs().max())
    bases = [certificate_of(one).f_baseline for one in (got, want)]
    assert difference(*bases) < tolerance * float(bases[1].abs().max())


def test_the_fused_kernel_keeps_no_maps(fused_kernel: list[tuple[int, ...]]) -> None:
    """Bytes that the graph keeps grow with the length, not with its square."""
    loaded = make_loaded("llama", dtype=torch.float32, max_position_embeddings=2048)

    def kept(words: int) -> int:
        generation = chat(loaded, content="The capital of France is Paris " * words)
        total: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            total[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            deletion_path(loaded, generation, targets=token_targets(generation)[:1], n_steps=1)
        return sum(total.values())

    short, long = kept(20), kept(80)
    assert fused_kernel
    assert long < 7 * short  # the mask, which all layers share, does grow so


# derivatives and closed forms


@pytest.mark.parametrize("u", [0.05, 0.3, 0.7, 0.98])
def test_slopes_are_finite_differences_of_f(gpt64: LoadedModel, u: float) -> None:
    generation = answered(gpt64)
    targets = token_targets(generation)
    path = presence_path(gpt64, generation, features="content")
    with frozen_eval(gpt64.model), path.attached(gpt64.model):
        function = path_function(gpt64, path, targets, size=ChunkSize(1024))
        got = {t: slope for (_, t), slope in function.sums([Node(u, tuple(range(len(targets))))]).items()}
    model, live = eager_copy(gpt64.model), max(t.last for t in targets) + 1
    step = 1e-4 * u**POWER

    def f(token: int, change: float) -> Tensor:
        presence = torch.where(path.moving[:live], u**POWER, 1.0).double()
        presence[token] += change
        with torch.no_grad():
            return naive_f(model, generation, targets, presence)

    for token in path.moving[:live].nonzero()[:, 0].tolist():
        want = (f(token, step) - f(token, -step)) / (2 * step) * POWER * u ** (POWER - 1)
        for t in range(len(targets)):
            assert float(got[t][token]) == pytest.approx(float(want[t]), abs=1e-6, rel=1e-5)


def eager_attention_forward(
    _module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **_: Any
) -> tuple[Tensor, Tensor]:
    weights = (query @ key.transpose(2, 3) + mask).softmax(dim=-1)
    return (weights @ value).transpose(1, 2), weights


class OneAttention(PreTrainedModel):
    """logits = W (attention over the embeddings), scores <Q x_q, x_k>: one layer, one head, and nothing else."""

    config_class = GPT2Config
    _supports_attention_backend = True
    _supports_sdpa = True
    _is_stateful = True  # no key-value cache

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.n_embd)
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.layers = nn.ModuleList([nn.Identity()])
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(
        self,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        logits_to_keep: Any = slice(None),
        **_: Any,
    ) -> Any:
        x = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        mask = create_causal_mask(self.config, x, None, None)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        q, k = self.query(x)[:, None], x[:, None]
        mixed = attend(self, q, k, k, self.changed(mask), scaling=1.0)[0][:, :, 0]
        return SimpleNamespace(logits=self.head(mixed[:, logits_to_keep]))

    def changed(self, mask: Tensor | None) -> Tensor | None:
        return mask


def one_attention(kind: type[OneAttention] = OneAttention, kernel: str = "sdpa") -> LoadedModel:
    tokenizer = make_tokenizer()
    ends = {"bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": False}
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1, initializer_range=0.5, **ends)
    config._attn_implementation = kernel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config).double().eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.5)
    return wrap(model, tokenizer, name=kind.__name__)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_two_tokens_in_closed_form(kernel: str) -> None:
    """F(a) = (a w_1 c_1 + a w_2 c_2 + c_3) / (a (w_1 + w_2) + 1), w being exp(score) over that of the token itself."""
    loaded = one_attention(kernel=kernel)
    generation = answered(loaded, "The capital of", " France")
    assert generation.prompt_len == 3
    (target,) = token_targets(generation, kind="logit")[:1]
    got = deletion_path(loaded, generation, targets=[target], features="all", n_steps=48)

    model = loaded.model
    x = model.embeddings.weight.detach()[list(generation.ids[:3])]
    c = (x @ model.head.weight.detach()[target.ids[0]]).tolist()
    scores = x @ model.query(x[2]).detach()
    w = (scores[:2] - scores[2]).exp().tolist()
    whole = sum(w)
    flat = 1 / (1 + whole)  # integral of 1 / (a W + 1)^2
    rising = (math.log1p(whole) - whole / (1 + whole)) / whole**2  # of a / (a W + 1)^2
    want = [
        w[0] * ((c[0] - c[2]) * flat + w[1] * (c[0] - c[1]) * rising),
        w[1] * ((c[1] - c[2]) * flat + w[0] * (c[1] - c[0]) * rising),
    ]
    assert got.values[0, :2].tolist() == pytest.approx(want, abs=1e-10)
    assert got.features[0].tolist() == [True, True, *[False] * (len(generation.ids) - 2)]
    certificate = certificate_of(got)
    assert float(certificate.f_baseline[0]) == pytest.approx(c[2], abs=1e-12)
    assert float(certificate.f_input[0]) == pytest.approx((w[0] * c[0] + w[1] * c[1] + c[2]) / (whole + 1), abs=1e-12)


# completeness against a real mask


def hidden_by_a_mask(loaded: LoadedModel, generation: Generation, moving: Tensor) -> Tensor:
    """[target]: F where a boolean mask hides every moving key from the queries behind it."""
    n = len(generation.ids)
    seen = torch.ones(n, n, dtype=torch.bool).tril() & (~moving | torch.eye(n, dtype=torch.bool))
    near = seen & torch.ones(n, n, dtype=torch.bool).triu(1 - WINDOW)
    mask: Any = seen[None, None]
    if loaded.model.config.model_type in ("gemma2", "gemma3_text"):
        mask = {"full_attention": seen[None, None], "sliding_attention": near[None, None]}
        if loaded.model.config._attn_implementation == "eager":
            floats = {name: torch.zeros(one.shape, dtype=loaded.dtype) for name, one in mask.items()}
            mask = {name: floats[name].masked_fill(~one, torch.finfo(loaded.dtype).min) for name, one in mask.items()}
    if loaded.model.config.model_type == "mistral":
        mask = near[None, None]
    with torch.no_grad():
        output = loaded.model(torch.tensor([generation.ids]), attention_mask=mask, use_cache=False)
    rows = output.logits[0].double().log_softmax(dim=-1)
    return torch.stack([rows[t.positions[0], t.ids[0]] for t in token_targets(generation)])


@pytest.mark.parametrize(
    "architecture", ["llama", "qwen3", "phi3", "gpt2", "gpt_neox", "olmo2", "gemma2", "gemma3_text", "mistral"]
)
@pytest.mark.parametrize("features", ["content", "all"])
def test_the_path_leads_from_a_real_mask_to_the_model(architecture: str, features: str) -> None:
    loaded = make_loaded(architecture, dtype=torch.float64)
    generation = chat(loaded)
    certificate = certificate_of(deletion_path(loaded, generation, features=features, n_steps=1))
    moving = moving_tokens(generation, features=features)
    assert difference(certificate.f_baseline, hidden_by_a_mask(loaded, generation, moving)) < 1e-5
    assert certificate.f_input.tolist() == pytest.approx(replay(loaded, generation).logprobs, abs=1e-5)


@pytest.mark.parametrize("features", ["content", "prompt", "all"])
def test_converged_targets_are_complete_within_tolerance(llama64: LoadedModel, features: str) -> None:
    tolerance = Tolerance(relative=0.01, absolute=0.002)
    result = deletion_path(llama64, chat(llama64), features=features, tolerance=tolerance, max_nodes=2048)
    check_certificate(result)
    certificate = certificate_of(result)
    assert all(certificate.converged)
    assert (certificate.gap.abs() <= certificate.tolerance).all()


def test_the_adaptive_result_is_the_integral(gpt64: LoadedModel) -> None:
    tight = Tolerance(relative=1e-6, absolute=1e-6)
    got = deletion_path(gpt64, chat(gpt64), tolerance=tight, max_nodes=4096)
    want = deletion_path(gpt64, chat(gpt64), n_steps=300)
    assert all(certificate_of(got).converged)
    assert difference(got.values, want.values) < 1e-5
    assert certificate_of(want).gap.abs().max() < 1e-10


def test_unconverged_when_the_node_budget_is_too_small(llama64: LoadedModel) -> None:
    strict = Tolerance(relative=1e-9, absolute=1e-9)
    result = deletion_path(llama64, chat(llama64), tolerance=strict, max_nodes=8)
    check_certificate(result)
    assert not any(certificate_of(result).converged)
    assert max(certificate_of(result).nodes) <= 8


def test_a_token_that_sees_nothing_but_itself() -> None:
    """With every token hidden the answer depends on the last one alone: there is no NaN, and the rest may change."""
    loaded = make_loaded("gpt2", dtype=torch.float64)
    first, second = (answered(loaded, f"{word} capital of", " Paris") for word in ("The", "A"))
    assert first.ids[1:] == second.ids[1:]
    ends = [certificate_of(deletion_path(loaded, g, features="all", n_steps=1)).f_baseline[0] for g in (first, second)]
    assert float(ends[0]) == pytest.approx(float(ends[1]), abs=1e-12)


# features


def test_held_and_later_tokens_get_exactly_zero(gpt64: LoadedModel) -> None:
    generation = chat(gpt64)
    result = deletion_path(gpt64, generation, n_steps=STEPS)
    held = torch.tensor([role in (Role.TEMPLATE, Role.BOS) for role in generation.roles])
    for t in range(generation.n_targets):
        last = predicting_position(generation.prompt_len, t)
        assert (result.values[t, last:] == 0).all()  # nothing comes after the last one that could see it
        assert (result.values[t, :last][~held[:last]] != 0).all()
        assert result.features[t].tolist() == [i < last and not h for i, h in enumerate(held.tolist())]
    assert result.settings["held"] == held.nonzero()[:, 0].tolist()
    assert result.features[-1, generation.prompt_len]  # earlier words of the answer are features, too


def test_a_span_is_the_sum_of_its_tokens(gpt64: LoadedModel) -> None:
    generation = chat(gpt64)
    tokens = deletion_path(gpt64, generation, n_steps=STEPS)
    for first, end in ((0, None), (1, 3)):
        span = span_target(generation, first=first, end=end)
        got = deletion_path(gpt64, generation, targets=[span], n_steps=STEPS)
        assert difference(got.values[0], tokens.values[first:end].sum(dim=0)) < 1e-10


# how it is computed changes rounding only


@pytest.mark.parametrize("chunk_tokens", [1, 40, 100_000])
def test_chunks_change_rounding_only(gpt64: LoadedModel, chunk_tokens: int) -> None:
    want = deletion_path(gpt64, chat(gpt64), n_steps=STEPS)
    got = deletion_path(gpt64, chat(gpt64), n_steps=STEPS, compute=Compute(chunk_tokens=chunk_tokens))
    assert difference(got.values, want.values) < 1e-10


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt2", "falcon", "bloom", "t5", "bart"])
def test_checkpointing_changes_rounding_only(architecture: str) -> None:
    if architecture in ENCODER_DECODERS:
        loaded = make_encoder_decoder(architecture)
        loaded.model.double()
        generation = answered(loaded)
    else:
        loaded = make_loaded(architecture, dtype=torch.float64)
        generation = chat(loaded)
    want = deletion_path(loaded, generation, max_nodes=16)
    got = deletion_path(loaded, generation, max_nodes=16, compute=Compute(checkpoint=True, chunk_tokens=64))
    assert difference(got.values, want.values) < 1e-5 * float(want.values.abs().max())
    assert certificate_of(got).nodes == certificate_of(want).nodes


def test_a_long_sequence_is_checkpointed_where_no_kernel_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its attention maps, which the graph would keep for all layers, are computed again a layer at a time."""
    eager, plain = (make_loaded("gpt2", dtype=torch.float64, attn_implementation=name) for name in ("eager", "sdpa"))
    generation = chat(eager)
    want = deletion_path(eager, generation, n_steps=2)
    assert want.settings["checkpoint"] is False
    n = len(generation.ids) - 1
    monkeypatch.setattr("llmxai.methods.gradients.deletion_path.MAP_NUMBERS", 2 * 3 * 4 * n * 1024 - 1)
    got = deletion_path(eager, generation, n_steps=2)
    assert got.settings["checkpoint"] is True
    assert difference(got.values, want.values) < 1e-10
    small = Compute(chunk_tokens=n)
    assert deletion_path(eager, generation, n_steps=2, compute=small).settings["checkpoint"] is False
    assert fuses(plain.model, tokens=n)
    assert not fuses(plain.model, tokens=n // 2)
    fused_one = deletion_path(plain, generation, n_steps=2)
    assert fused_one.settings["checkpoint"] is False
    assert difference(fused_one.values, want.values) < 1e-10


@given_random(response=st.text(alphabet="abcde fg", min_size=2, max_size=40))
@settings(max_examples=5, deadline=None)
def test_targets_alone_or_together_give_the_same_numbers(gpt64: LoadedModel, response: str) -> None:
    generation = chat(gpt64, response=response)
    targets = token_targets(generation)
    together = deletion_path(gpt64, generation, n_steps=2)
    for t, target in enumerate(targets):
        alone = deletion_path(gpt64, generation, targets=[target], n_steps=2)
        assert difference(together.values[t], alone.values[0]) < 1e-10
        assert together.features[t].tolist() == alone.features[0].tolist()


def test_f_of_the_input_is_taken_where_it_is_known(gpt64: LoadedModel) -> None:
    generation = answered(gpt64)
    known = torch.tensor(replay(gpt64, generation).f, dtype=torch.float64)
    got, want = (deletion_path(gpt64, generation, n_steps=2, f_input=f) for f in (known, None))
    assert torch.equal(certificate_of(got).f_input, known)
    assert torch.equal(got.values, want.values)
    assert difference(certificate_of(got).gap, certificate_of(want).gap) < 1e-10


def test_gradients_in_bfloat16_are_certified_against_the_models_own_f(tiny_llama: LoadedModel) -> None:
    fast = Compute(gradient_dtype="bfloat16")
    got = deletion_path(tiny_llama, chat(tiny_llama), max_nodes=512, compute=fast)
    want = deletion_path(tiny_llama, chat(tiny_llama), n_steps=64)
    check_certificate(got)
    assert all(certificate_of(got).converged)
    cosine = torch.nn.functional.cosine_similarity(got.values, want.values, dim=1)
    assert (cosine > 0.95).all()


def test_a_model_in_bfloat16(tiny_llama: LoadedModel) -> None:
    got = deletion_path(make_loaded("llama", dtype=torch.bfloat16), chat(tiny_llama), n_steps=8)
    want = deletion_path(tiny_llama, chat(tiny_llama), n_steps=8)
    assert (torch.nn.functional.cosine_similarity(got.values, want.values, dim=1) > 0.95).all()


def test_progress_counts_every_gradient(llama64: LoadedModel) -> None:
    calls: list[tuple[int, int]] = []
    result = deletion_path(llama64, chat(llama64), progress=lambda done, wanted: calls.append((done, wanted)))
    nodes = sum(certificate_of(result).nodes)
    done = [count for count, _ in calls]
    assert done == sorted(set(done))
    assert calls[-1] == (nodes, nodes)


# the caller's model is left alone


def state_of(model: PreTrainedModel) -> dict[str, Any]:
    modules = dict(model.named_modules())
    return {
        "training": {name: module.training for name, module in modules.items()},
        "grads": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "hooks": {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in modules.items()},
        "forwards": {name: "forward" in module.__dict__ for name, module in modules.items()},
        "kernels": {
            name: module.config._attn_implementation
            for name, module in modules.items()
            if isinstance(module, PreTrainedModel)
        },
        "known": {*AttentionInterface._global_mapping, *AttentionMaskInterface._global_mapping},
    }


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "bloom", "falcon", "t5", "bart"])
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(architecture: str, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    two_sided = architecture in ENCODER_DECODERS
    loaded = make_encoder_decoder(architecture) if two_sided else make_loaded(architecture)
    loaded.model.train()
    before = state_of(loaded.model)
    weights = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    generation = answered(loaded)
    if fails:
        head = loaded.model.get_output_embeddings()
        monkeypatch.setattr(head, "forward", lambda _x: (_ for _ in ()).throw(ZeroDivisionError("in the middle")))
        before["forwards"] = state_of(loaded.model)["forwards"]
        with pytest.raises(UnsupportedModelError, match="in the middle"):
            deletion_path(loaded, generation, n_steps=2, compute=Compute(checkpoint=True))
    else:
        deletion_path(loaded, generation, n_steps=2, compute=Compute(checkpoint=True))
    assert state_of(loaded.model) == before
    assert PRESENCE not in before["known"]
    assert all(torch.equal(weights[name], tensor) for name, tensor in loaded.model.state_dict().items())


# refusals and faults


@pytest.mark.parametrize("architecture", HYBRIDS)
def test_layers_without_softmax_attention_are_refused(architecture: str) -> None:
    loaded = make_loaded(architecture)
    with pytest.raises(UnsupportedModelError, match=r"of its 3 layers have no softmax attention.*the deletion path"):
        deletion_path(loaded, answered(loaded))


def test_falcons_alibi_is_refused() -> None:
    """It hides every key whose mask is under -1, so log a does not reach the scores."""
    loaded = make_loaded("falcon", alibi=True)
    with pytest.raises(UnsupportedModelError, match="0 of the 3 attentions of FalconForCausalLM use the mask"):
        deletion_path(loaded, answered(loaded))


class WithoutMask(OneAttention):
    """Attends without the mask that it is given."""

    def changed(self, mask: Tensor | None) -> Tensor | None:
        del mask
        return None


class BooleanOnly(OneAttention):
    """Takes no mask of numbers."""

    def changed(self, mask: Tensor | None) -> Tensor | None:
        if mask is not None and mask.is_floating_point():
            raise TypeError("expected a boolean mask")
        return mask


def test_an_attention_that_takes_no_mask_is_refused() -> None:
    loaded = one_attention(WithoutMask)
    with pytest.raises(UnsupportedModelError, match="0 of the 1 attentions of WithoutMask use the mask"):
        deletion_path(loaded, answered(loaded))


def test_a_model_that_refuses_float_masks_is_refused() -> None:
    loaded = one_attention(BooleanOnly)
    with pytest.raises(UnsupportedModelError, match=r"BooleanOnly refuses a mask.*expected a boolean mask"):
        deletion_path(loaded, answered(loaded))


def test_nan_on_the_path_is_an_error() -> None:
    loaded = make_loaded("llama")
    with torch.no_grad():
        loaded.model.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"NaN.*float32"):
        deletion_path(loaded, answered(loaded), n_steps=2)


def test_nan_under_a_mask_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that divides by nothing where all is hidden."""
    loaded = one_attention()

    def hollow(*arguments: Any, **options: Any) -> Any:
        mask = arguments[4]
        output = loaded_attention(*arguments, **options)
        gone = (mask < -1e30).sum(dim=(1, 2, 3)) > mask.shape[2] * (mask.shape[2] - 1) / 2
        return (torch.where(gone[:, None, None, None], torch.nan, output[0]), None)

    name = "llmxai.methods.gradients.deletion_path.sdpa_attention_forward"
    loaded_attention = ALL_ATTENTION_FUNCTIONS["sdpa"]
    monkeypatch.setattr(name, hollow)
    with pytest.raises(NonFiniteError, match="NaN"):
        deletion_path(loaded, answered(loaded))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"features": "everything"}, ["everything", "content", "prompt", "all"]),
        ({"max_nodes": 0}, ["max_nodes is 0", "at least"]),
        ({"n_steps": 0}, ["n_steps is 0"]),
    ],
)
def test_a_bad_option_says_what_came_and_what_is_known(
    tiny_llama: LoadedModel, options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(OptionError) as caught:
        deletion_path(tiny_llama, answered(tiny_llama), **options)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_source_of_one_token_is_refused() -> None:
    loaded = make_encoder_decoder("t5")
    loaded.tokenizer.backend_tokenizer.post_processor = None  # no end mark after the source
    generation = force_response(loaded, encode_prompt(loaded, "1"), response=" Rome")
    assert generation.source_len == 1
    with pytest.raises(OptionError, match="source is a single token"):
        deletion_path(loaded, generation)


# quantised, and real


@pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes", "ignore::FutureWarning:bitsandbytes")
@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_quantised_weights_work_unchanged(quantize: Any, tmp_path: Path) -> None:
    save_wide(tmp_path)
    loaded, plain = load(tmp_path, quantize=quantize, dtype="float32"), load(tmp_path, dtype="float32")
    generation = answered(loaded)
    got, want = deletion_path(loaded, generation, n_steps=8), deletion_path(plain, generation, n_steps=8)
    check_certificate(got)
    assert (torch.nn.functional.cosine_similarity(got.values, want.values, dim=1) > 0.9).all()
    if quantize == "4bit":  # in 8 bits activations are rounded, too, and F jumps
        certificate = certificate_of(got)
        assert (certificate.gap.abs() <= 0.05 * (certificate.f_input - certificate.f_baseline).abs() + 0.01).all()


def test_it_is_in_the_table() -> None:
    entry = METHODS["deletion_path"]
    assert entry.needs == {"gradients", "attentions"}
    assert list(entry.options) == ["features", "tolerance", "max_nodes", "n_steps"]


@pytest.mark.slow
def test_the_real_model_converges_and_finds_the_source(smollm2: LoadedModel) -> None:
    asked = "Anna: 482\nBen: 731\nClara: 965\nWhat is the number of Ben? Answer with the number only."
    generation = force_response(smollm2, encode_messages(smollm2, [{"role": "user", "content": asked}]), response="731")
    result = deletion_path(smollm2, generation, targets=token_targets(generation)[:1])
    check_certificate(result)
    assert all(certificate_of(result).converged)
    assert generation.texts[int(result.values[0].argmax())] == "7"


def test_the_layers_share_the_masks_of_the_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph keeps each mask once, of whatever depth the model is; nothing stays afterwards."""
    monkeypatch.setattr(importlib.import_module(deletion_path.__module__), "FUSED_FROM", 1)
    monkeypatch.setattr(fused._OnCpu, "apply", fused.behind_a_mask)
    made, masks = fused._behind_and_itself, list[Tensor]()

    def watched(queries: int, keys: int, **options: Any) -> Tensor:
        masks.append(made(queries, keys, **options))
        return masks[-1]

    monkeypatch.setattr(fused, "_behind_and_itself", watched)
    loaded = make_loaded("llama", num_hidden_layers=6, attn_implementation="sdpa")
    deletion_path(loaded, answered(loaded), n_steps=2)
    assert len(masks) > 6
    assert len({id(mask) for mask in masks}) == len({mask.shape for mask in masks})
    assert not fused._masks
