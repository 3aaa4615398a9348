"""Encoder-decoders: the source is read as a whole, the answer is generated from left to right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from llmxai.errors import UnsupportedModelError
from llmxai.models.adapters.causal import equal_shares, generated, generation_config, not_causal
from llmxai.models.embedding import embed, input_device, on_device, replaced
from llmxai.models.forward import frozen_eval, run
from llmxai.names import Progress, quiet
from llmxai.settings import Decoding
from llmxai.types import Answer, Generation, PromptTokens, Role


@torch.no_grad()
def require_explainable(model: PreTrainedModel, *, name: str) -> None:
    """Raise UnsupportedModelError for a model that does not run from tokens on both sides, or that reads ahead.

    Neither another last token nor none may change an earlier token's logits. Of a quantised model, whose rounding may
    depend on all tokens of a pass, only sequences of one batch are compared.
    """
    ids = torch.arange(3, device=input_device(model)).repeat(2, 2)
    ids[1, -1] = 0  # another last token
    embeds = torch.stack([embed(model, row.tolist(), source=3) for row in ids])
    with frozen_eval(model):
        whole = logits(model, embeds, ids=ids, positions=[4], prefix=None, source=3)
        short = logits(model, embeds[:1, :5], ids=ids[:1, :5], positions=[4], prefix=None, source=3)
    first, *others = torch.cat([whole, short])[:, 0].float()
    quantised = getattr(model, "hf_quantizer", None) is not None
    compared = others[:1] if quantised else others
    if not all(torch.allclose(first, x, rtol=1e-3, atol=1e-3, equal_nan=True) for x in compared):
        raise not_causal(model, name=name)


def logits(
    model: PreTrainedModel,
    inputs_embeds: Float[Tensor, "batch seq width"] | None,
    *,
    ids: Int[Tensor, "batch seq"],
    positions: Sequence[int],
    prefix: DynamicCache | None,
    source: int,
) -> Float[Tensor, "batch position vocab"]:
    """Logits at `positions` of the joint axis: the first `source` embeddings go to the encoder, the rest follow."""
    del prefix
    with replaced(model, ids, inputs_embeds, source=source):
        found = torch.as_tensor(run(model, **two_sided(ids, source)).logits)
    return found[:, on_device([position - source for position in positions], found.device)]


def two_sided(ids: Int[Tensor, "batch seq"], source: int) -> dict[str, Any]:
    """The arguments for sequences whose first `source` ids are the encoder's and whose others are the decoder's."""
    mask = torch.ones_like(ids[:, :source])
    return {
        "input_ids": ids[:, :source],
        "attention_mask": mask,
        "decoder_input_ids": ids[:, source:],
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
    model: PreTrainedModel,
    *,
    name: str,
    prompts: Sequence[PromptTokens],
    decoding: Decoding,
    room: int,
    tokenizer: PreTrainedTokenizerBase,
    progress: Progress = quiet,
) -> list[Answer]:
    """The decoder's output for each source, one source at a time."""
    config, device, found = generation_config(model, decoding, room), input_device(model), []
    for prompt in prompts:
        source = torch.tensor([prompt.ids[: prompt.source_len]], device=device)
        begin = torch.tensor([prompt.ids[prompt.source_len :]], device=device)
        inputs = {"inputs": source, "attention_mask": torch.ones_like(source), "decoder_input_ids": begin}
        found += generated(
            model, tokenizer, name=name, config=config, inputs=inputs, seed=decoding.seed, progress=progress
        )
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
