"""Causal language models: one stack of layers that reads from left to right."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteriaList

from llmxai.errors import NonFiniteError, UnsupportedModelError
from llmxai.models.embedding import devices_of, input_device, kept_positions, on_device, replaced
from llmxai.models.families import layers_without_softmax
from llmxai.models.finding import EMBEDDED
from llmxai.models.forward import (
    ROWS,
    cache_argument,
    frozen_eval,
    keeps_logits,
    log_probs,
    lost_positions,
    own_errors,
    repeated,
    run,
    torch_seeded,
    transformer_layers,
)
from llmxai.names import Progress, quiet
from llmxai.settings import Decoding
from llmxai.types import Answer, Generation, PromptTokens

QUANTISED_NOISE = 0.1
"""Share of what an earlier token's own change does to its logits that a later token may do in a quantised model.

For kernels whose rounding depends on a row's place in the batch.
"""


@torch.no_grad()
def require_explainable(model: PreTrainedModel, *, name: str) -> None:
    """Raise UnsupportedModelError if a later token changes an earlier token's logits: such a model is an encoder.

    The sequences are compared within one batch. What a quantised model rounds by all tokens of a pass (LLM.int8 looks
    for outlier columns over them) is then the same for each; in passes of their own, a later token moves an earlier
    one's rounding.
    """
    pairs = torch.tensor([[0, 1], [0, 2], [1, 2]], device=input_device(model))
    with frozen_eval(model):
        first, later, own = model(input_ids=pairs, use_cache=False).logits[:, 0].float()
    if torch.allclose(first, later, rtol=1e-3, atol=1e-3, equal_nan=True):
        return
    quantised = getattr(model, "hf_quantizer", None) is not None
    if not (quantised and (first - later).norm() < QUANTISED_NOISE * (first - own).norm()):
        raise not_causal(model, name=name)


def not_causal(model: PreTrainedModel, *, name: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{name}: {type(model).__name__} is not a causal language model as it runs here: a later token changes the "
        f"logits of an earlier one, so its log-probs are not those with which it would generate from left to right. "
        f"Give a causal model (for example `{EMBEDDED}`), or a fine-tuned classifier (...ForSequenceClassification)."
    )


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
    keep = kept_positions(model, positions)
    mask = ids.new_ones(len(ids), before + ids.shape[1])
    with replaced(model, ids, inputs_embeds):
        output = run(model, input_ids=ids, attention_mask=mask, logits_to_keep=keep, **past)
    found = torch.as_tensor(output.logits)
    return found if keeps_logits(model) else found[:, torch.as_tensor(keep, device=found.device)]


def stacks(model: PreTrainedModel) -> list[nn.ModuleList]:
    return [transformer_layers(model)]


def keeps_prefix(model: PreTrainedModel) -> bool:
    """Whether the model's only memory of earlier tokens is keys and values, which later tokens do not change.

    One that numbers positions from all its ids (Qwen's with pictures) cannot go on from a cache with the rest of them.
    """
    parameters = inspect.signature(model.forward).parameters
    takes = "use_cache" in parameters and bool({"cache", "past_key_values"} & set(parameters))
    numbers = any(hasattr(part, "get_rope_index") for part in model.modules())
    stateful = getattr(model, "_is_stateful", False) or bool(layers_without_softmax(model.config))
    return takes and not numbers and not stateful


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
    model: PreTrainedModel,
    *,
    name: str,
    prompts: Sequence[PromptTokens],
    decoding: Decoding,
    room: int,
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress = quiet,
) -> list[Answer]:
    """One pass per step for all prompts, rows padded on the left; log-probs (nats) are of the raw logits.

    With stop strings, one prompt at a time: transformers pads a row that has stopped, and the padding looks like text.
    """
    config = generation_config(model, decoding, room)
    each = 1 if config.stop_strings else len(prompts)
    found = []
    for first in range(0, len(prompts), each):
        part = prompts[first : first + each]
        width = max(len(prompt.ids) for prompt in part)
        pads = [width - len(prompt.ids) for prompt in part]
        rows = zip(part, pads, strict=True)
        ids = [[config.pad_token_id] * pad + list(prompt.ids) for prompt, pad in rows]
        mask = [[0] * pad + [1] * (width - pad) for pad in pads]
        device = input_device(model)
        inputs = {"inputs": on_device(ids, device), "attention_mask": on_device(mask, device)}
        if lost := lost_positions(model):  # generate counts from 0, and the model's own forward does not
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(dim=1) + lost - 1).clamp(min=lost)
        found += generated(
            model, tokenizer, name=name, config=config, inputs=inputs, seed=decoding.seed, progress=progress
        )
    return found


GENERATING = "generate with its generation settings"
ONE_BY_ONE: dict[str, Any] = {
    **{"num_beams": 1, "num_return_sequences": 1, "token_healing": False, "use_cache": True},
    **dict.fromkeys(
        (
            *("early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty", "constraints"),
            *("force_words_ids", "penalty_alpha", "dola_layers", "low_memory", "prompt_lookup_num_tokens"),
            *("assistant_early_exit", "cache_implementation", "cache_config", "prefill_chunk_size", "compile_config"),
        )
    ),
}
"""Overrides a model's own generation settings: tokens are chosen one by one, each from all before it, as `Decoding`
says. So no search over several answers or layers, no other prompt (token healing), and no drafts or special caches,
which change how fast the same tokens come, or round them."""


def generation_config(model: PreTrainedModel, decoding: Decoding, room: int) -> GenerationConfig:
    """The model's own generation settings, overridden by `decoding` and `ONE_BY_ONE`."""
    sampled = decoding.temperature > 0
    own = model.generation_config
    config = GenerationConfig.from_model_config(model.config) if own is None else copy.deepcopy(own)
    for setting in [name for name in ONE_BY_ONE if hasattr(config, name)]:
        setattr(config, setting, ONE_BY_ONE[setting])
    with own_errors(model, what=GENERATING):  # settings are validated together
        config.update(
            max_new_tokens=room,
            max_length=None,
            do_sample=sampled,
            temperature=decoding.temperature if sampled else None,
            top_p=decoding.top_p if sampled else None,
            top_k=decoding.top_k if sampled else None,
            return_dict_in_generate=True,
            output_logits=True,
            output_scores=False,
        )
    if config.pad_token_id is None:
        eos = config.eos_token_id
        config.pad_token_id = eos[0] if isinstance(eos, list) else (eos if eos is not None else 0)
    return config


@contextmanager
def only_settings(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Inside, these are the model's own settings as well: `generate` takes from those what is None here."""
    before = model.generation_config
    try:
        model.generation_config = config
        yield
    finally:
        model.generation_config = before


def generated(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    config: GenerationConfig,
    inputs: dict[str, Tensor],
    seed: int,
    progress: Progress,
) -> list[Answer]:
    """The answers of `model.generate`, row by row, up to the first end mark. Preserves the caller's random state.

    `progress` is called after each token with how many there are, and the most that there may be.

    Raises UnsupportedModelError if transformers cannot generate with the model's settings.
    """
    named = {"tokenizer": tokenizer} if config.stop_strings else {}
    drawn_alike = torch_seeded(seed, devices=devices_of(model))  # a token is drawn on the last
    with frozen_eval(model), torch.no_grad(), drawn_alike, only_settings(model, config), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are calling .generate")  # the ids are where the embedding runs
        with own_errors(model, what=GENERATING):
            output: Any = model.generate(
                **inputs, generation_config=config, stopping_criteria=_counting(config, progress), **named
            )
    eos = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    width = output.sequences.shape[1] - len(output.logits)
    found = []
    for row, sequence in enumerate(output.sequences):
        ids = sequence[width:].tolist()
        end = next((t + 1 for t, token in enumerate(ids) if token in eos), len(ids))
        steps = [logits[row] for logits in output.logits[:end]]
        stopped = config.stop_strings and end < config.max_new_tokens
        found.append(
            Answer(
                ids=tuple(ids[:end]),
                logprobs=_recorded(model, ids[:end], steps, name=name),
                stop="eos" if ids[end - 1] in eos else "string" if stopped else "length",
            )
        )
    return found


def _counting(config: GenerationConfig, progress: Progress) -> StoppingCriteriaList:
    """Reports every token and never stops: what `generate` calls after each of them."""
    numbers = count(1)

    def report(ids: Tensor, _scores: object, **_: object) -> Tensor:
        progress(next(numbers), config.max_new_tokens)
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    return StoppingCriteriaList([report])


def _recorded(model: PreTrainedModel, answer: Sequence[int], rows: Sequence[Tensor], *, name: str) -> tuple[float, ...]:
    """The log-prob of every id under its own logits. Raises NonFiniteError if they hold NaN or infinity."""
    found: list[float] = []
    for first in range(0, len(answer), ROWS):
        logits = torch.stack(list(rows[first : first + ROWS]))
        chosen = on_device(answer[first : first + ROWS], logits.device)
        logprobs, largest = torch.stack([log_probs(logits, chosen), logits.amax(dim=-1).double()]).tolist()
        for t, (logprob, most) in enumerate(zip(logprobs, largest, strict=True), start=first):
            if not math.isfinite(most) or math.isnan(logprob):
                raise NonFiniteError(
                    f"{name}: the logits for generated token {t} hold NaN or infinity in {model.dtype}. Load it "
                    f"with --dtype float32 (or bfloat16), or check the weights."
                )
        found += logprobs
    return tuple(found)
