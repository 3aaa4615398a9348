"""Encoder-decoders: the source is read as a whole, the answer is generated from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from llmxai.errors import UnsupportedModelError
from llmxai.models.adapters.causal import equal_shares, generated, generation_config
from llmxai.models.forward import embed, frozen_eval, indices, input_device
from llmxai.settings import Decoding
from llmxai.types import Answer, Generation, PromptTokens, Role


@torch.no_grad()
def require_explainable(model: PreTrainedModel, *, name: str) -> None:
    """Raise UnsupportedModelError if embeddings give different logits than their ids.

    Encoder and decoder then embed differently or scale the embeddings (Marian), and one path cannot serve both.
    """
    ids = list(range(3))
    with frozen_eval(model):
        token_ids = torch.tensor([ids], device=input_device(model))
        want = model(input_ids=token_ids, decoder_input_ids=token_ids, use_cache=False).logits
        got = logits(model, embed(model, ids + ids)[None], positions=[3, 4, 5], prefix=None, source=3)
    if not torch.allclose(want.float(), got.float(), rtol=1e-2, atol=1e-2, equal_nan=True):
        raise UnsupportedModelError(
            f"{name}: {type(model).__name__} gives different logits from embeddings than from ids (its two sides "
            f"embed differently, or it scales the embeddings), so its embeddings cannot be moved along a path."
        )


def logits(
    model: PreTrainedModel,
    inputs_embeds: Float[Tensor, "batch seq hidden"],
    *,
    positions: Sequence[int],
    prefix: DynamicCache | None,
    source: int,
) -> Float[Tensor, "batch position vocab"]:
    """Logits at `positions` of the joint axis: the first `source` embeddings go to the encoder, the rest follow."""
    del prefix
    keep = indices(model, positions)
    found = torch.as_tensor(model(**two_sided(inputs_embeds, source)).logits)
    return found[:, (keep - source).to(found.device)]


def two_sided(inputs_embeds: Float[Tensor, "batch seq hidden"], source: int) -> dict[str, Any]:
    """The arguments for one sequence: its first `source` embeddings and the decoder's."""
    return {
        "inputs_embeds": inputs_embeds[:, :source],
        "decoder_inputs_embeds": inputs_embeds[:, source:],
        "use_cache": False,
    }


def stacks(model: PreTrainedModel) -> list[nn.ModuleList]:
    """The encoder's layers and the decoder's."""
    found = []
    for side, module in (("encoder", model.get_encoder()), ("decoder", model.get_decoder())):
        stack = next((part for part in module.modules() if isinstance(part, nn.ModuleList)), None)
        if stack is None:
            raise UnsupportedModelError(f"The {side} of {type(model).__name__} has no list of layers.")
        found.append(stack)
    return found


def keeps_prefix(model: PreTrainedModel) -> bool:
    """False: the source is read in both directions, so no part of it can be computed before the rest."""
    del model
    return False


def initial_rows(
    model: PreTrainedModel, *, name: str, generation: Generation, positions: Sequence[Sequence[int]]
) -> Float[Tensor, "target seen"]:
    """1 at a target's predicting position, over source and earlier answer."""
    del model, name, generation
    return equal_shares(positions)


def answers(
    model: PreTrainedModel, *, name: str, prompts: Sequence[PromptTokens], decoding: Decoding, room: int
) -> list[Answer]:
    """The decoder's output for each source, one source at a time."""
    config, device, found = generation_config(model, decoding, room), input_device(model), []
    for prompt in prompts:
        source = torch.tensor([prompt.ids[: prompt.source_len]], device=device)
        begin = torch.tensor([prompt.ids[prompt.source_len :]], device=device)
        inputs = {"inputs": source, "attention_mask": torch.ones_like(source), "decoder_input_ids": begin}
        found += generated(model, name=name, config=config, inputs=inputs, seed=decoding.seed)
    return found


def with_decoder_start(model: PreTrainedModel, prompt: PromptTokens, *, name: str) -> PromptTokens:
    """The source, followed by the tokens that the decoder always starts with.

    These are the start token and, if there is one, the forced first token (BART, mBART). The model did not choose them,
    so they are held and not explained. Raises UnsupportedModelError if no start token is known.
    """
    config = model.generation_config
    start = config.decoder_start_token_id
    start = start if start is not None else model.config.decoder_start_token_id
    if start is None:
        raise UnsupportedModelError(
            f"{name}: neither its configuration nor its generation settings name a decoder_start_token_id, so "
            f"its answer has no start."
        )
    begin = [start] if config.forced_bos_token_id is None else [start, config.forced_bos_token_id]
    return replace(
        prompt,
        ids=(*prompt.ids, *begin),
        roles=(*prompt.roles, *[Role.TEMPLATE] * len(begin)),
        source_len=len(prompt.ids),
    )
