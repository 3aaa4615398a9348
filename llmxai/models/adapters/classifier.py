"""Text classifiers: the answer is one class, treated as the only token that the model generates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from llmxai.errors import NonFiniteError, PromptError, UnsupportedModelError
from llmxai.models.adapters.causal import equal_shares
from llmxai.models.embedding import input_device, replaced
from llmxai.models.finding import require_one_class, require_one_stack
from llmxai.models.forward import first_of, frozen_eval, own_errors, run, transformer_layers, with_first
from llmxai.names import Progress, quiet
from llmxai.settings import Decoding
from llmxai.types import Answer, Generation, PromptTokens

NO_TOKEN = -1
"""An id that no token has."""


def require_explainable(model: PreTrainedModel, *, name: str) -> None:
    """Raise UnsupportedModelError if the logits are not a distribution over mutually exclusive classes, or two stacks
    give them.
    """
    require_one_class(model.config, name=name)
    require_one_stack(model.config, type(model).__name__, name=name)


def logits(
    model: PreTrainedModel,
    inputs_embeds: Float[Tensor, "batch seq width"] | None,
    *,
    ids: Int[Tensor, "batch seq"],
    positions: Sequence[int],
    prefix: DynamicCache | None,
    source: int,
) -> Float[Tensor, "batch position vocab"]:
    """The single row of logits for the whole sequence, returned for any position."""
    del prefix, source
    with replaced(model, ids, inputs_embeds):
        return class_logits(model, ids)[:, None].expand(-1, len(positions), -1)


def class_logits(model: PreTrainedModel, ids: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch class"]:
    """The model's logits, every token seen."""
    with padding_named(model):
        return torch.as_tensor(run(model, input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits)


@contextmanager
def padding_named(model: PreTrainedModel) -> Iterator[None]:
    """Inside, a model without padding names an id that no text has: it refuses batches otherwise, and pads nothing."""
    config = model.config.get_text_config()
    before = getattr(config, "pad_token_id", None)
    try:
        if before is None:
            config.pad_token_id = NO_TOKEN
        yield
    finally:
        config.pad_token_id = before


def stacks(model: PreTrainedModel) -> list[nn.ModuleList]:
    return [transformer_layers(model)]


def keeps_prefix(model: PreTrainedModel) -> bool:
    """False: the model reads in both directions, so no token can be computed before the rest."""
    del model
    return False


def initial_rows(
    model: PreTrainedModel, *, name: str, generation: Generation, positions: Sequence[Sequence[int]]
) -> Float[Tensor, "target seen"]:
    """Equal shares of the positions that the head reads. Raises UnsupportedModelError if they are unknown."""
    if not generation.read_at:
        raise UnsupportedModelError(
            f"{name}: the layers of {type(model).__name__} cannot be identified, so the position that its classifier "
            f"reads is unknown and attention rollout has no starting point; integrated gradients work."
        )
    row = equal_shares([generation.read_at])
    return torch.nn.functional.pad(row, (0, 1 + max(map(max, positions)) - row.shape[1])).expand(len(positions), -1)


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
    """The most likely class of every prompt."""
    del decoding, room, tokenizer, progress
    return [classified(model, prompt, name=name, label=None) for prompt in prompts]


def classified(model: PreTrainedModel, prompt: PromptTokens, *, name: str, label: str | None) -> Answer:
    """The most likely class, or the class `label` (its name or number), with its log-prob (nats).

    The id is the class's number. Raises PromptError for a label that the model does not have and NonFiniteError if the
    logits hold NaN.
    """
    with frozen_eval(model), torch.no_grad():
        values = class_logits(model, torch.tensor([prompt.ids], device=input_device(model)))[0].double()
        try:
            read = positions_read(model, prompt.ids)
        except UnsupportedModelError:
            read = ()
    if not torch.isfinite(values).all():
        raise NonFiniteError(
            f"{name}: the logits of the classes hold NaN or infinity in {model.dtype}. Load it with --dtype "
            f"float32 (or bfloat16), or check the weights."
        )
    names = label_names(model)
    chosen = int(values.argmax()) if label is None else class_number(names, label, name=name)
    return Answer(
        ids=(chosen,),
        logprobs=None if label is not None else (float(torch.log_softmax(values, dim=-1)[chosen]),),
        stop="class" if label is None else "given",
        classes=tuple(names),
        read_at=read,
    )


def label_names(model: PreTrainedModel) -> list[str]:
    """The names of the classes, in the order of the logits; classes of one name get their numbers: `other (3)`."""
    known = model.config.id2label
    names = [str(known.get(number, f"LABEL_{number}")) for number in range(model.config.num_labels)]
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names)]


def class_number(names: Sequence[str], label: str, *, name: str) -> int:
    """The class that `label` gives by name or number. Raises PromptError for an unknown class."""
    if label in names:
        return list(names).index(label)
    if label.isdigit() and int(label) < len(names):
        return int(label)
    raise PromptError(
        f"{name} has no class {label!r}. Known: {', '.join(map(repr, names))}, or a number from 0 to {len(names) - 1}."
    )


def positions_read(model: PreTrainedModel, ids: Sequence[int]) -> tuple[int, ...]:
    """The positions of the last layer's output that the logits depend on, from their gradient.

    Raises UnsupportedModelError if the layers cannot be identified. Call inside `frozen_eval(model)`.
    """
    leaves: list[Tensor] = []

    def cut(_layer: nn.Module, _arguments: object, output: Any) -> Any:
        leaves.append(first_of(output).detach().requires_grad_())
        return with_first(output, leaves[-1])

    handle = transformer_layers(model)[-1].register_forward_hook(cut)
    try:
        with torch.enable_grad():
            values = class_logits(model, torch.tensor([list(ids)], device=input_device(model)))
            if len(leaves) != 1 or leaves[0].shape[:2] != (1, len(ids)):
                raise UnsupportedModelError(f"The layers of {type(model).__name__} do not give one vector per token.")
            with own_errors(model, what="be differentiated in its last layer"):
                (gradient,) = torch.autograd.grad(values.float().square().sum(), leaves[0])
    finally:
        handle.remove()
    return tuple(gradient[0].abs().amax(dim=-1).nonzero()[:, 0].tolist())
