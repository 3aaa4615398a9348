"""The pipeline as a whole: what comes out, and that nothing is left behind."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable
from math import comb
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import answered, make_loaded, prompt_tokens
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from llmxai import explain, save
from llmxai.errors import (
    InsufficientMemoryError,
    NonFiniteError,
    OptionError,
    PromptError,
    UnsupportedModelError,
    UserError,
)
from llmxai.explain import variant_names
from llmxai.explanation import Explanation
from llmxai.generation import Decoding, encode_messages, generate, replay
from llmxai.methods import (
    METHODS,
    Target,
    attention_rollout,
    gradient_weighted_rollout,
    layer_integrated_gradients,
    leave_one_out,
)
from llmxai.methods.gradients.deletion_path import PRESENCE
from llmxai.models import LoadedModel, embed, load, wrap
from llmxai.models.adapters import causal
from llmxai.models.identity import weights_digest
from llmxai.models.memory import plan_memory
from llmxai.settings import AttentionRollout, Compute, IntegratedGradients, Removal, Settings, Tolerance, settings_from
from llmxai.store import read_folder
from llmxai.types import Role, Status, predicting_position

SHORT = Decoding(max_new_tokens=3)
FEW = IntegratedGradients(max_nodes=8)
CHAT = [{"role": "user", "content": "The capital of France"}]


def test_everything_fits_together(tiny_llama: LoadedModel) -> None:
    result = explain(tiny_llama, CHAT, decoding=SHORT)
    generation = result.generation
    shape = (generation.n_targets, len(generation.ids))
    assert generation.n_targets == len(result.checks) == len(result.replay.logprobs) == 3
    assert result.gradients.values.shape == result.rollout.values.shape == shape
    certificate = result.gradients.certificate
    assert certificate is not None
    assert torch.allclose(certificate.f_input, torch.tensor(result.replay.logprobs, dtype=torch.float64), atol=1e-4)
    for t, check in enumerate(result.checks):
        assert (check.status == Status.UNCONVERGED) == (not certificate.converged[t])
        assert check.dilution.sink_mass == pytest.approx(float(result.rollout.values[t, 0]))
        assert check.variant_dilution.sink_mass == pytest.approx(float(result.variant.values[t, 0]))
    assert result.computed["features"] == "content"
    assert result.computed["baseline"] == "space"
    assert result.environment["model"]["name"] == "tiny llama"
    assert result.environment["model"]["parameters"] == tiny_llama.model.num_parameters()
    assert result.environment["packages"]["torch"].startswith(torch.__version__.split("+")[0])


def test_options_reach_the_methods(tiny_llama: LoadedModel) -> None:
    result = explain(
        tiny_llama,
        "The capital of France",
        response=" Paris",
        settings=Settings(
            features="all",
            gradients=IntegratedGradients(
                baseline="zero", tolerance=Tolerance(relative=0.5, absolute=0.1), max_nodes=12
            ),
            rollout=AttentionRollout(residual=0.25),
        ),
    )
    assert result.generation.stop == "given"
    assert result.computed["features"] == "all"
    assert result.computed["baseline"] == "zero"
    assert result.computed["tolerance"] == {"relative": 0.5, "absolute": 0.1}
    assert result.computed["rollout"]["residual"] == 0.25
    assert result.gradients.certificate is not None
    assert max(result.gradients.certificate.nodes) <= 12


@pytest.mark.parametrize("name", variant_names())
def test_every_variant_can_stand_beside_the_rollout(tiny_llama: LoadedModel, name: str, tmp_path: Path) -> None:
    settings = Settings(gradients=FEW, rollout=AttentionRollout(variant=name))
    result = explain(tiny_llama, "The capital of France", response=" Paris, Rome", settings=settings)
    assert result.variant.method == name
    assert result.rollout.method == "attention_rollout"
    assert result.variant.values.shape == result.rollout.values.shape
    document, maps = read_folder(save(result, tmp_path / "out"))
    assert document["variant"]["method"] == name
    assert "http" in document["variant"]["source"]
    assert torch.allclose(torch.tensor(maps["rollout_variant"]).double(), result.variant.values, atol=1e-6)


def test_the_referee_reads_what_was_removed(tiny_llama: LoadedModel) -> None:
    settings = Settings(gradients=FEW, removal=Removal(subsets=12, operator="mean"))
    result = explain(tiny_llama, CHAT, decoding=SHORT, settings=settings)
    assert result.effects is not None
    assert result.gradients.certificate is not None
    units = len(result.effects.units)
    assert result.effects.kept.shape == (min(12, comb(units, units // 2)), units)
    assert torch.allclose(result.effects.f_full, result.gradients.certificate.f_input, atol=1e-4)
    for check in result.checks:
        assert check.verdict is not None
        assert list(check.verdict.scores) == [
            *("layer_integrated_gradients", "attention_rollout", result.variant.method),
            *("deletion_path", "leave_one_out"),
        ]
    without = Settings(gradients=FEW, removal=None)
    assert explain(tiny_llama, CHAT, decoding=SHORT, settings=without).effects is None


def test_the_same_question_gives_the_same_numbers(tiny_llama: LoadedModel) -> None:
    one, two = (explain(tiny_llama, CHAT, decoding=Decoding(max_new_tokens=3, temperature=1.0)) for _ in "ab")
    assert one.generation == two.generation
    assert torch.equal(one.gradients.values, two.gradients.values)
    assert torch.equal(one.rollout.values, two.rollout.values)
    assert torch.equal(one.variant.values, two.variant.values)
    assert one.checks == two.checks


def test_stages_are_reported_in_order(tiny_llama: LoadedModel) -> None:
    stages: list[str] = []
    explain(tiny_llama, CHAT, decoding=SHORT, progress=lambda stage, _done, _n: stages.append(stage))
    told = [stage for stage in dict.fromkeys(stages) if not stage.startswith("planned ")]
    assert told == [
        *(
            f"generating, at most {SHORT.max_new_tokens} tokens",
            "replaying",
            "removing parts of the text",
            "integrating gradients",
        ),
        *("integrating the deletion path", "rolling out attention", "gradient weighted rollout"),
        "tracing through the answer",
    ]
    assert "GiB of working memory" in next(stage for stage in stages if stage.startswith("planned "))


def test_memory_is_planned_or_refused_before_gradients(
    tiny_llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_free(free: int) -> Explanation:
        monkeypatch.setattr("llmxai.models.memory.free_memory", lambda _device: free)
        return explain(tiny_llama, CHAT, decoding=SHORT, settings=Settings(gradients=FEW))

    found = [with_free(10**9)]
    shape = {"tokens": len(found[0].generation.ids), "targets": 3, "dtype": torch.float32}
    tight = next(n for n in range(10**6, 0, -1000) if plan_memory(tiny_llama.model.config, free=n, **shape).checkpoint)
    found.append(with_free(tight))
    with pytest.raises(InsufficientMemoryError, match=r"tiny llama: explaining \d+ tokens in float32 needs"):
        with_free(1000)
    assert [result.computed["checkpoint"] for result in found] == [False, True]
    assert found[0].computed["chunk_tokens"] == 1024 >= found[1].computed["chunk_tokens"]
    assert (found[0].gradients.values - found[1].gradients.values).abs().max() < 1e-4
    by_hand = Settings(gradients=FEW, compute=Compute(chunk_tokens=99))
    assert explain(tiny_llama, CHAT, decoding=SHORT, settings=by_hand).computed["chunk_tokens"] == 99


def test_the_position_rule() -> None:
    assert [predicting_position(5, t) for t in range(3)] == [4, 5, 6]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"prompt": {"role": "user"}}, PromptError, "mapping with 'role'; expected a tokenizer's output"),
        ({"prompt": {"input_ids": [[1], [2]]}}, PromptError, "Got 2 sequences of token ids"),
        ({"prompt": ""}, PromptError, "prompt is empty"),
        ({"prompt": "a", "response": ""}, PromptError, "response is empty"),
        ({"prompt": "a", "features": "words"}, OptionError, "'words' is unknown. Known: content, prompt, all"),
        ({"prompt": "a", "gradients": {"baseline": "grey"}}, OptionError, "'grey' is unknown. Known: space"),
        ({"prompt": "a", "gradients": {"max_nodes": 1}}, OptionError, "max_nodes is 1"),
        ({"prompt": "a", "rollout": {"residual": 1.5}}, OptionError, "residual is 1.5"),
        (
            {"prompt": "a", "rollout": {"variant": "rollout"}},
            OptionError,
            "'rollout' is unknown. Did you mean 'min_head_rollout'? Known: ",
        ),
        ({"prompt": "a", "also": ["lyme"]}, OptionError, "unknown method 'lyme'. Did you mean 'lime'?"),
        ({"prompt": [{"role": "user", "content": ""}]}, OptionError, "--features all"),
        ({"prompt": []}, PromptError, "no messages"),
    ],
)
def test_bad_input(tiny_llama: LoadedModel, arguments: dict[str, Any], error: type[UserError], words: str) -> None:
    asked = {name: arguments[name] for name in ("prompt", "response") if name in arguments}
    settings = {name: value for name, value in arguments.items() if name not in asked}
    with pytest.raises(error) as caught:
        explain(tiny_llama, **asked, decoding=SHORT, settings=settings_from(settings))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "prompt", ["a\x00b", "\u202eabc\u2069", "</script><b>", "{{ 7 * 7 }}{% for %}", "<|im_end|>", "😀", " "]
)
def test_odd_prompts_are_explained_exactly(tiny_llama: LoadedModel, prompt: str, tmp_path: Path) -> None:
    result = explain(tiny_llama, prompt, decoding=SHORT, settings=Settings(gradients=FEW))
    generation = result.generation
    assert "".join(generation.texts[: generation.prompt_len]) == prompt
    folder = save(result, tmp_path / "out")
    document, _ = read_folder(folder)
    assert document["generation"]["request"] == {"prompt": prompt}
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "</script><b>" not in page
    assert "\u202e" not in page
    assert "\x00" not in page


def test_nan_weights_are_an_error_and_write_nothing(tmp_path: Path) -> None:
    loaded = make_loaded("llama")
    with torch.no_grad():
        loaded.model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN"):
        save(explain(loaded, "Hello", decoding=SHORT), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3_text", "mistral", "falcon", "bloom", "gpt_oss"])
def test_other_architectures_run_through(architecture: str, tmp_path: Path) -> None:
    loaded = make_loaded(architecture)
    messages = [{"role": "user", "content": "The capital of France is Paris, and the capital of Italy"}]
    result = explain(loaded, messages, decoding=SHORT, settings=Settings(gradients=FEW))
    document, maps = read_folder(save(result, tmp_path / "out"))
    assert document["environment"]["model"]["architecture"] == type(loaded.model).__name__
    assert abs(float(maps["rollout"][0].sum()) + document["targets"][0]["rollout"]["lost_mass"] - 1) < 1e-5


@pytest.mark.slow
def test_the_real_model(smollm2: LoadedModel, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Which city is the capital of France?"}]
    settings = Settings(gradients=IntegratedGradients(max_nodes=160))
    result = explain(smollm2, messages, response="Paris.", settings=settings)
    document, _ = read_folder(save(result, tmp_path / "out"))
    assert result.gradients.certificate is not None
    assert all(result.gradients.certificate.converged)
    assert document["generation"]["answer"] == "Paris."
    first = document["targets"][0]["sources"]["integrated_gradients"][:5]
    assert "France" in "".join(document["tokens"][source["index"]]["text"] for source in first)
    assert document["environment"]["model"]["digest"] == smollm2.weight_digest


# nothing twice


def real_inputs(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> tuple[Explanation, Counter[str]]:
    """Forward passes to logits over the real input, by stage; a pass may continue from a cache of the beginning."""
    stage, passes, logits = "", [], causal.logits

    def told(now: str, _done: int, _all: int) -> None:
        nonlocal stage
        stage = now

    def counted(model: Any, inputs_embeds: torch.Tensor, *, prefix: Any, **options: Any) -> torch.Tensor:
        before = 0 if prefix is None else prefix.get_seq_length()
        if (
            inputs_embeds is not None and model.config._attn_implementation != PRESENCE
        ):  # else tokens are hidden from each other
            passes.append((stage, before, inputs_embeds.detach().clone()))
        return logits(model, inputs_embeds, prefix=prefix, **options)

    monkeypatch.setattr(causal, "logits", counted)
    result = explain(loaded, CHAT, decoding=SHORT, settings=settings, progress=told)
    real, found = embed(loaded.model, result.generation.ids), Counter[str]()
    for when, before, embeds in passes:
        same = real[before : before + embeds.shape[1]]
        if len(same) == embeds.shape[1]:
            found[when] += sum(torch.equal(row, same) for row in embeds)
    assert len({when for when, *_ in passes}) >= 3, "replay, gradients and removals go through here"
    return result, +found


def test_f_of_the_input_is_computed_once(tiny_llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the replay; gradient-weighted rollout goes through the real input for its gradients, and removal for the whole
    next-token distributions with all turns, not for F."""
    result, found = real_inputs(tiny_llama, monkeypatch, Settings(gradients=FEW, also=("leave_one_out",)))
    assert found == {"replaying": 1, "removing parts of the text": 1, "gradient weighted rollout": 1}
    want = torch.tensor(result.replay.f, dtype=torch.float64)
    assert result.gradients.certificate is not None
    assert result.effects is not None
    assert torch.equal(result.gradients.certificate.f_input, want)
    assert torch.equal(result.effects.f_full, want)


def test_without_a_gradient_of_attention_there_is_no_other_pass(
    tiny_llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(gradients=FEW, rollout=AttentionRollout(variant="max_head_rollout"))
    assert real_inputs(tiny_llama, monkeypatch, settings)[1] == {"replaying": 1, "removing parts of the text": 1}


def test_targets_are_built_once(tiny_llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Target] = []
    plain = Target.__post_init__

    def counted(self: Target) -> None:
        built.append(self)
        plain(self)

    monkeypatch.setattr(Target, "__post_init__", counted)
    also = ("saliency", "leave_one_out", "context_cite", "last_layer_attention")
    result = explain(tiny_llama, CHAT, decoding=SHORT, settings=Settings(gradients=FEW, also=also))
    assert sum(len(target.ids) == 1 for target in built) == result.generation.n_targets
    assert {target.ids for target in built if len(target.ids) > 1} == {result.generation.generated_ids}


def test_weights_are_hashed_once(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a model is explained; again when the file is another."""
    folder = shutil.copytree(model_folder, tmp_path / "model")
    weights = folder / "model.safetensors"
    opened: list[Path] = []
    plain = Path.open

    def counted(self: Path, *arguments: Any, **options: Any) -> Any:
        opened.extend([self] if self.suffix == weights.suffix and folder in self.parents else [])
        return plain(self, *arguments, **options)

    loaded = load(folder)
    monkeypatch.setattr(Path, "open", counted)
    digests = set()
    for number in range(3):
        result = explain(loaded, "The capital", response=" Paris", settings=Settings(gradients=FEW, removal=None))
        save(result, tmp_path / str(number))
        digests.add(result.environment["model"]["digest"])
        assert result.environment["model"]["weight_files"][0]["sha256"] == result.environment["model"]["digest"]
    assert opened == [weights]
    assert digests == {hashlib.sha256(weights.read_bytes()).hexdigest()}
    with weights.open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x01")
    assert weights_digest(loaded) not in digests


# leave no mark


def marks(loaded: LoadedModel) -> dict[str, Any]:
    model, tokenizer = loaded.model, loaded.tokenizer
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "gradients": [parameter.grad for parameter in model.parameters()],
        "training": [module.training for module in model.modules()],
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "hooks": [len(getattr(module, name)) for module in model.modules() for name in hooks],
        "config": model.config.to_dict(),
        "attention": [m.config._attn_implementation for m in model.modules() if hasattr(m, "config")],
        "registries": [sorted(AttentionInterface().keys()), sorted(AttentionMaskInterface().keys())],
        "generation_config": model.generation_config.to_dict(),
        "vocabulary": tokenizer.get_vocab(),
        "special": tokenizer.special_tokens_map,
        "template": tokenizer.chat_template,
        "random": torch.get_rng_state(),
        "grad mode": torch.is_grad_enabled(),
    }


def require_no_mark(before: dict[str, Any], after: dict[str, Any]) -> None:
    weights = before.pop("weights"), after.pop("weights")
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert torch.equal(before.pop("random"), after.pop("random"))
    assert "llmxai" not in str(after["registries"])  # also not from an earlier test
    assert before == after


@pytest.fixture(params=["llama", "gpt2", "gemma2", "falcon", "bloom"])
def trained(request: pytest.FixtureRequest) -> LoadedModel:
    """As a caller may hold it: in training mode with gradients on, one part frozen, one in evaluation mode."""
    loaded = make_loaded(request.param)
    loaded.model.train()
    loaded.model.get_input_embeddings().weight.requires_grad_(False)
    next(iter(loaded.model.children())).eval()
    return loaded


STEPS: dict[str, Callable[[LoadedModel], object]] = {
    "wrap": lambda loaded: wrap(loaded.model, loaded.tokenizer),
    "encode": lambda loaded: encode_messages(loaded, CHAT),
    "generate": lambda loaded: generate(loaded, prompt_tokens(loaded), decoding=SHORT),
    "sample": lambda loaded: generate(
        loaded, prompt_tokens(loaded), decoding=Decoding(max_new_tokens=3, temperature=1.0, top_p=0.9, top_k=9)
    ),
    "replay": lambda loaded: replay(loaded, answered(loaded)),
    "gradients": lambda loaded: layer_integrated_gradients(loaded, answered(loaded), max_nodes=8),
    "rollout": lambda loaded: attention_rollout(loaded, answered(loaded)),
    "removal": lambda loaded: leave_one_out(loaded, answered(loaded)),
    "gradient-weighted": lambda loaded: gradient_weighted_rollout(loaded, answered(loaded)),
    "measured residual": lambda loaded: METHODS["measured_residual_rollout"].function(loaded, answered(loaded)),
    "explain": lambda loaded: explain(loaded, CHAT, decoding=SHORT, settings=Settings(gradients=FEW)),
}


@pytest.mark.parametrize("step", STEPS)
def test_no_mark_is_left(trained: LoadedModel, step: str) -> None:
    before = marks(trained)
    STEPS[step](trained)
    require_no_mark(before, marks(trained))


@pytest.mark.parametrize("calls", [0, 1, 3])
@pytest.mark.parametrize("step", [step for step in STEPS if step != "encode"])
def test_no_mark_is_left_by_a_failure(
    trained: LoadedModel, step: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last layer of the stack fails, at once or later on."""
    block = next(module for module in trained.model.modules() if isinstance(module, torch.nn.ModuleList))[-1]
    forward, left = type(block).forward, [calls]

    def fail(self: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
        if self is block:
            left[0] -= 1
            if left[0] < 0:
                raise RuntimeError("in the middle")
        return forward(self, *arguments, **options)

    before = marks(trained)
    monkeypatch.setattr(type(block), "forward", fail)
    try:
        STEPS[step](trained)
    except (RuntimeError, UnsupportedModelError) as error:
        assert "in the middle" in str(error)  # noqa: PT017
    else:
        assert left[0] >= 0, "it failed and nobody heard of it"
    require_no_mark(before, marks(trained))


def test_no_mark_is_left_by_a_failing_backward(trained: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no gradient today")

    before = marks(trained)
    monkeypatch.setattr(torch.autograd, "grad", fail)
    with pytest.raises(UnsupportedModelError, match="no gradient today"):
        STEPS["gradients"](trained)
    monkeypatch.undo()
    require_no_mark(before, marks(trained))


def test_the_callers_gradients_stay(trained: LoadedModel) -> None:
    trained.model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    before = [None if p.grad is None else p.grad.clone() for p in trained.model.parameters()]
    assert any(gradient is not None for gradient in before)
    STEPS["explain"](trained)
    for gradient, parameter in zip(before, trained.model.parameters(), strict=True):
        assert (gradient is None) == (parameter.grad is None)
        assert gradient is None or torch.equal(gradient, parameter.grad)


def test_dropout_of_a_model_in_training_mode_is_off() -> None:
    loaded = make_loaded("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    want = [STEPS[step](loaded) for step in ("replay", "gradients", "rollout")]
    loaded.model.train()
    got = [STEPS[step](loaded) for step in ("replay", "gradients", "rollout")]
    assert got[0] == want[0]
    assert torch.equal(got[1].values, want[1].values)
    assert torch.equal(got[2].values, want[2].values)


def test_roles_reach_the_explanation(tiny_llama: LoadedModel) -> None:
    result = explain(tiny_llama, CHAT, decoding=SHORT, settings=Settings(gradients=FEW))
    held = {i for i, role in enumerate(result.generation.roles) if role in (Role.BOS, Role.TEMPLATE)}
    assert set(result.computed["held"]) == held
