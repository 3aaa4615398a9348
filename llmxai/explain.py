"""The pipeline in one function: generate, replay, attribute, take apart, cross-check."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llmxai.crosscheck import RULE, cross_check
from llmxai.environment import version_of, versions_of
from llmxai.errors import OptionError, PromptError, UnsupportedModelError
from llmxai.generation import (
    Decoding,
    PromptTokens,
    classify,
    encode_messages,
    encode_prompt,
    force_response,
    generate,
    generate_many,
    replay,
    with_foil,
)
from llmxai.generation.prompt import Message
from llmxai.methods import (
    BEST_EVIDENCED,
    METHODS,
    Compute,
    Removal,
    Tolerance,
    attention_rollout,
    layer_integrated_gradients,
    measure_effects,
    refused_rollout,
    require_variant,
    roll_variant,
)
from llmxai.methods.features import require_path_options
from llmxai.models import LoadedModel, ModelKind
from llmxai.models.identity import identity
from llmxai.models.loading import weights_digest
from llmxai.models.memory import plan_for, require_fits
from llmxai.types import Attribution, Explanation, Generation, Rollout

PACKAGES = ("torch", "transformers", "accelerate", "bitsandbytes", "peft", "numpy", "scipy", "safetensors")

Report = Callable[[str, int, int], None]
"""Called with (what is being done, steps that are done, steps)."""


def explain(
    model: LoadedModel,
    prompt: str | None = None,
    *,
    messages: Sequence[Message] | None = None,
    response: str | None = None,
    foil: str | None = None,
    generation: Generation | None = None,
    decoding: Decoding = Decoding(),
    features: str = "content",
    baseline: str | Tensor = "space",
    tolerance: Tolerance = Tolerance(),
    max_nodes: int = 128,
    compute: Compute | None = None,
    residual: float = 0.5,
    variant: str = BEST_EVIDENCED,
    referee: Removal | None = Removal(),
    report: Report = lambda _stage, _done, _all: None,
) -> Explanation:
    """Explain every generated token of one answer.

    Give `prompt` (raw text) or `messages` (through the model's chat template), and `response` to explain a given
    answer in place of a generated one. A classifier's answer is its most likely class, or the class that `response`
    names. `generation` is an answer that is there already, such as one of `generate_many`. With `foil`, an answer that
    was not given, the first token in which the two differ is explained as a contrast: why this and not that
    (`llmxai.generation.against`). See
    `layer_integrated_gradients` for `features`, `baseline`, `tolerance`, `max_nodes` and `compute`,
    `attention_rollout` for `residual`. `variant` names the rollout variant that stands beside the plain one
    (`variant_names()`). `referee` says how the prompt is taken apart to see which method foretells
    that better; None asks no referee. Without `compute` the memory is planned: the fastest settings that fit into what
    is free, or InsufficientMemoryError before gradients are computed.

    Where attention rollout or the variant is not defined for the model (linear attention, state space), it is refused
    with the reason (`Rollout.refused`), the rest is delivered, and the status says `unchecked`.

    Raises UserError (see `llmxai.errors`) for everything a caller can mend.
    """
    require_path_options(model, features=features, baseline=baseline)
    require_variant(variant)
    if referee is not None:
        require_path_options(model, features=features, baseline=referee.baseline)
    if sum(source is not None for source in (prompt, messages, generation)) != 1:
        raise OptionError("Give either a prompt, messages or a generation: exactly one of them.")
    if generation is None:
        asked = messages if messages is not None else prompt
        assert asked is not None
        tokens = _encode(model, asked)
        report("generating", 0, 1)
        generation = _answer(model, tokens, response, decoding)
    generation = generation if foil is None else with_foil(model, generation, foil=foil)
    report("replaying", 0, 1)
    replayed = replay(model, generation)
    if compute is None:
        compute = _planned(model, generation, report)
    report("integrating gradients", 0, 1)
    attribution = layer_integrated_gradients(
        model,
        generation,
        features=features,
        baseline=baseline,
        tolerance=tolerance,
        max_nodes=max_nodes,
        compute=compute,
        progress=lambda done, n: report("integrating gradients", done, n),
    )
    report("rolling attention out", 0, 1)
    rollout = _or_refused(
        "attention_rollout", generation, lambda: attention_rollout(model, generation, residual=residual)
    )
    beside = _or_refused(
        variant,
        generation,
        lambda: roll_variant(
            model, generation, name=variant, progress=lambda done, n: report("weighing attention", done, n)
        ),
    )
    ablations = None
    if referee is not None:
        report("taking the prompt apart", 0, 1)
        ablations = measure_effects(
            model,
            generation,
            ablation=referee,
            progress=lambda done, n: report("taking the prompt apart", done, n),
        )
    checks = cross_check(generation, attribution, rollout, beside, ablations, rule=RULE)
    return Explanation(
        generation=generation,
        replay=replayed,
        attribution=attribution,
        rollout=rollout,
        variant=beside,
        ablations=ablations,
        checks=checks,
        settings=_settings(attribution, rollout, beside) | {"replay_tolerance": replayed.tolerance},
        environment=environment(model),
    )


def explain_many(
    model: LoadedModel,
    prompts: Sequence[str | Sequence[Message]],
    *,
    batch_size: int = 8,
    decoding: Decoding = Decoding(),
    features: str = "content",
    baseline: str | Tensor = "space",
    tolerance: Tolerance = Tolerance(),
    max_nodes: int = 128,
    compute: Compute | None = None,
    residual: float = 0.5,
    variant: str = BEST_EVIDENCED,
    referee: Removal | None = Removal(),
    report: Report = lambda _stage, _done, _all: None,
) -> Iterator[Explanation]:
    """The explanations of several prompts in their order, each as soon as it is there; the same as one by one.

    A prompt is raw text or chat messages. `batch_size` of them are answered together (`generate_many`), then each
    answer is explained by itself. Everything else is as in `explain`. All prompts are encoded before any work, so that
    one that cannot be is a PromptError at once, which says its number; what was explained before an error is not lost.
    """
    tokens = [_numbered(i, model, prompt) for i, prompt in enumerate(prompts)]
    if batch_size < 1:
        raise OptionError(f"batch_size is {batch_size}; expected at least 1.")

    def explanations() -> Iterator[Explanation]:
        for first in range(0, len(tokens), batch_size):
            batch = tokens[first : first + batch_size]
            report(f"generating {first + 1} to {first + len(batch)} of {len(tokens)}", 0, 1)
            if model.kind is ModelKind.CLASSIFIER:
                answers = tuple(classify(model, prompt) for prompt in batch)
            else:
                answers = generate_many(model, batch, decoding=decoding, batch_size=batch_size)
            for i, answer in enumerate(answers, start=first + 1):
                yield explain(
                    model,
                    generation=answer,
                    features=features,
                    baseline=baseline,
                    tolerance=tolerance,
                    max_nodes=max_nodes,
                    compute=compute,
                    residual=residual,
                    variant=variant,
                    referee=referee,
                    report=partial(_report_numbered, report, f"{i} of {len(tokens)}"),
                )

    return explanations()


def _numbered(i: int, model: LoadedModel, prompt: str | Sequence[Message]) -> PromptTokens:
    try:
        return _encode(model, prompt)
    except PromptError as error:
        raise PromptError(f"Prompt {i + 1}: {error}") from error


def _report_numbered(report: Report, number: str, stage: str, done: int, n: int) -> None:
    report(f"{number}: {stage}", done, n)


def _answer(model: LoadedModel, tokens: PromptTokens, response: str | None, decoding: Decoding) -> Generation:
    if model.kind is ModelKind.CLASSIFIER:
        return classify(model, tokens, label=response)
    if response is None:
        return generate(model, tokens, decoding=decoding)
    return force_response(model, tokens, response=response)


def _or_refused(method: str, generation: Generation, work: Callable[[], Rollout]) -> Rollout:
    """The rollout; where the model's layers do not allow it, the reason in its place."""
    try:
        return work()
    except UnsupportedModelError as error:
        return refused_rollout(method, generation, reason=str(error))


def _settings(attribution: Attribution, rollout: Rollout, variant: Rollout) -> dict[str, Any]:
    return {
        **attribution.settings,
        "rollout": dict(rollout.settings),
        "variant": {
            "method": variant.method,
            "source": METHODS[variant.method].source,
            "settings": dict(variant.settings),
        },
        "crosscheck": asdict(RULE),
    }


def _planned(model: LoadedModel, generation: Generation, report: Report) -> Compute:
    tokens = len(generation.ids)
    plan = plan_for(model.model, tokens=tokens, targets=generation.n_targets)
    require_fits(plan, name=model.name, tokens=tokens, dtype=model.dtype)
    report(f"planned {plan.sentence()}", 0, 1)
    return Compute(chunk_tokens=plan.chunk_tokens, checkpoint=plan.checkpoint)


def _encode(model: LoadedModel, prompt: str | Sequence[Message]) -> PromptTokens:
    return encode_prompt(model, prompt) if isinstance(prompt, str) else encode_messages(model, prompt)


def environment(loaded: LoadedModel) -> dict[str, Any]:
    """What computed the explanation: versions, the model and its digest, the hardware."""
    model = loaded.model
    return {
        "llmxai": version_of("llmxai"),
        "python": platform.python_version(),
        "packages": versions_of(PACKAGES),
        "model": {
            "name": loaded.name,
            "revision": loaded.revision,
            "digest": weights_digest(loaded),
            "architecture": type(model).__name__,
            "parameters": model.num_parameters(),
            "dtype": str(loaded.dtype).removeprefix("torch."),
            "device": str(model.device),
            "quantization": loaded.quantization,
            "adapter": loaded.adapter,
            "attention": model.config._attn_implementation,
            **identity(loaded),
        },
        "hardware": {
            "machine": platform.machine(),
            "cpu": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }
