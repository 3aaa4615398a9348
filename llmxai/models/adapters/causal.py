"""Causal language models: one stack of layers that reads from left to right."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from llmxai.errors import NonFiniteError, UnsupportedModelError
from llmxai.models.embedding import indices, input_device, replaced
from llmxai.models.families import layers_without_softmax
from llmxai.models.finding import encoder_message
from llmxai.models.forward import (
    cache_argument,
    frozen_eval,
    keeps_logits,
    repeated,
    run,
    transformer_layers,
)
from llmxai.settings import Decoding
from llmxai.types import Answer, Generation, PromptTokens

QUANTISED_NOISE = 0.1
"""LLM.int8 looks for outlier columns over all tokens at once, so that a later token moves an earlier one's rounding."""


@torch.no_grad()
def require_explainable(model: PreTrainedModel, *, name: str) -> None:
    """Raise UnsupportedModelError if a later token changes an earlier token's logits: such a model is an encoder.

    Of a quantised model the change must stay below `QUANTISED_NOISE` of what the earlier token's own change does.
    """
    pairs = [[0, 1], [0, 2], [1, 2]]
    with frozen_eval(model):
        first, later, own = [
            model(input_ids=torch.tensor([pair], device=input_device(model)), use_cache=False).logits[0, 0].float()
            for pair in pairs
        ]
    if torch.allclose(first, later, rtol=1e-3, atol=1e-3, equal_nan=True):
        return
    quantised = getattr(model, "hf_quantizer", None) is not None
    if not (quantised and (first - later).norm() < QUANTISED_NOISE * (first - own).norm()):
        raise UnsupportedModelError(encoder_message(name, type(model).__name__))


def logits(
    model: PreTrainedModel,
    inputs_embeds: Float[Tensor, "batch seq width"] | None,
    *,
    ids: Int[Tensor, "batch seq"],
    positions: Sequence[int],
    prefix: DynamicCache | None,
    source: int,
) -> Float[Tensor, "batch position vocab"]:
    """Logits at `positions`; the output head runs only there if the model allows it."""
    del source
    past: dict[str, object] = {"use_cache": False}
    before = 0
    if prefix is not None:
        grown = repeated(prefix, len(ids))
        past, before = {"use_cache": True, cache_argument(model): grown}, grown.get_seq_length()
    keep = indices(model, positions)
    mask = ids.new_ones(len(ids), before + ids.shape[1])
    with replaced(model, ids, inputs_embeds):
        output = run(model, input_ids=ids, attention_mask=mask, logits_to_keep=keep, **past)
    found = torch.as_tensor(output.logits)
    return found if keeps_logits(model) else found[:, keep.to(found.device)]


def stacks(model: PreTrainedModel) -> list[nn.ModuleList]:
    return [transformer_layers(model)]


def keeps_prefix(model: PreTrainedModel) -> bool:
    """Whether the model's only memory of earlier tokens is keys and values, which later tokens do not change."""
    return not getattr(model, "_is_stateful", False) and not layers_without_softmax(model.config)


def initial_rows(
    model: PreTrainedModel, *, name: str, generation: Generation, positions: Sequence[Sequence[int]]
) -> Float[Tensor, "target seen"]:
    """1 at a target's predicting position; equal shares if it has several."""
    del model, name, generation
    return equal_shares(positions)


def equal_shares(positions: Sequence[Sequence[int]]) -> Float[Tensor, "target seen"]:
    """float64 rows with 1 / n at each of n positions, long enough for the last of all positions."""
    rows = torch.zeros(len(positions), 1 + max(map(max, positions)), dtype=torch.float64)
    for row, own in zip(rows, positions, strict=True):
        row[list(own)] = 1 / len(own)
    return rows


def answers(
    model: PreTrainedModel, *, name: str, prompts: Sequence[PromptTokens], decoding: Decoding, room: int
) -> list[Answer]:
    """One pass per step for all prompts, rows padded on the left; log-probs (nats) are of the raw logits."""
    config = generation_config(model, decoding, room)
    device = input_device(model)
    width = max(len(prompt.ids) for prompt in prompts)
    pads = [width - len(prompt.ids) for prompt in prompts]
    rows = zip(prompts, pads, strict=True)
    ids = torch.tensor([[config.pad_token_id] * pad + list(prompt.ids) for prompt, pad in rows], device=device)
    mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads], device=device)
    return generated(
        model, name=name, config=config, inputs={"inputs": ids, "attention_mask": mask}, seed=decoding.seed
    )


def generation_config(model: PreTrainedModel, decoding: Decoding, room: int) -> Any:
    """The model's own generation settings, overridden by `decoding`."""
    sampled = decoding.temperature > 0
    config = copy.deepcopy(model.generation_config)
    config.update(
        max_new_tokens=room,
        max_length=None,
        do_sample=sampled,
        temperature=decoding.temperature if sampled else None,
        top_p=decoding.top_p if sampled else None,
        top_k=decoding.top_k if sampled else None,
        num_beams=1,
        num_return_sequences=1,
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=False,
        use_cache=True,
    )
    if config.pad_token_id is None:
        eos = config.eos_token_id
        config.pad_token_id = eos[0] if isinstance(eos, list) else (eos if eos is not None else 0)
    return config


def generated(model: PreTrainedModel, *, name: str, config: Any, inputs: dict[str, Tensor], seed: int) -> list[Answer]:
    """The answers of `model.generate`, row by row, up to the first end mark. Preserves the caller's random state."""
    device = input_device(model)
    devices = [device.index or 0] if device.type == "cuda" else []
    with frozen_eval(model), torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        output = model.generate(**inputs, generation_config=config)
    eos = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    width = output.sequences.shape[1] - len(output.logits)
    found = []
    for row, sequence in enumerate(output.sequences):
        ids = sequence[width:].tolist()
        end = next((t + 1 for t, token in enumerate(ids) if token in eos), len(ids))
        steps = [logits[row] for logits in output.logits[:end]]
        found.append(
            Answer(
                ids=tuple(ids[:end]),
                logprobs=_recorded(model, ids[:end], steps, name=name),
                stop="eos" if ids[end - 1] in eos else "length",
            )
        )
    return found


def _recorded(model: PreTrainedModel, answer: Sequence[int], rows: Sequence[Tensor], *, name: str) -> tuple[float, ...]:
    """The log-prob of every id under its own logits. Raises NonFiniteError if they hold NaN or infinity."""
    logprobs = []
    for t, (token, row) in enumerate(zip(answer, rows, strict=True)):
        logprob = float(torch.log_softmax(row.double(), dim=-1)[token])
        if not torch.isfinite(row.amax()) or math.isnan(logprob):
            raise NonFiniteError(
                f"{name}: the logits for generated token {t} hold NaN or infinity in {model.dtype}. Load it "
                f"with --dtype float32 (or bfloat16), or check the weights."
            )
        logprobs.append(logprob)
    return tuple(logprobs)
