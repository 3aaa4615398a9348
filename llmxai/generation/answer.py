"""Let the model answer, or take a given answer, as exact ids with what was recorded of each."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmxai.errors import NonFiniteError, OptionError, PromptError, UnsupportedModelError
from llmxai.generation.prompt import PromptTokens, require_fits, require_text
from llmxai.generation.texts import token_texts
from llmxai.models import LoadedModel
from llmxai.models.forward import frozen_eval, input_device, pads_well, positions_read
from llmxai.text import group_words
from llmxai.types import Generation, Role


@dataclass(frozen=True)
class Decoding:
    """How the answer is chosen. Greedy unless a temperature is given."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise OptionError(f"max_new_tokens is {self.max_new_tokens}; there must be at least 1 token to explain.")
        if not 0 <= self.temperature < math.inf:
            raise OptionError(f"temperature is {self.temperature}; expected 0 (greedy) or a positive number.")
        if not 0 < self.top_p <= 1:
            raise OptionError(f"top_p is {self.top_p}; expected a number above 0 and up to 1.")
        if self.top_k < 0:
            raise OptionError(f"top_k is {self.top_k}; expected 0 (off) or a positive number.")


def generate(loaded: LoadedModel, prompt: PromptTokens, *, decoding: Decoding = Decoding()) -> Generation:
    """Generate after `prompt`, recording the log-prob (nats, from the raw logits) of every id as it is chosen.

    The caller's random state is left as it was. Raises NonFiniteError where the logits are NaN.
    """
    return generate_together(loaded, [prompt], decoding=decoding)[0]


def room_for(loaded: LoadedModel, prompt: PromptTokens, decoding: Decoding) -> int:
    """Tokens that the answer may have at most: what was asked for, within the model's context."""
    limit = loaded.context_length
    own = len(prompt.ids) - prompt.source_len  # what stands on the side that answers
    return decoding.max_new_tokens if limit is None else min(decoding.max_new_tokens, limit - own)


def generate_together(
    loaded: LoadedModel, prompts: Sequence[PromptTokens], *, decoding: Decoding = Decoding()
) -> list[Generation]:
    """Generate after every prompt in one pass a step, rows padded on the left; see `generate_many` for who may."""
    model, room = loaded.model, room_for(loaded, prompts[0], decoding)
    config = _config(model, decoding, room)
    devices = [device.index or 0] if (device := input_device(model)).type == "cuda" else []
    given_ids, begin = _inputs(prompts, pad=config.pad_token_id, device=device)
    with frozen_eval(model), torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(decoding.seed)
        output = model.generate(**given_ids, **begin, generation_config=config)
    eos = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    width = output.sequences.shape[1] - len(output.logits)
    found = []
    for row, prompt in enumerate(prompts):
        answer = output.sequences[row, width:].tolist()
        end = next((t + 1 for t, token in enumerate(answer) if token in eos), len(answer))
        found.append(
            _generation(
                loaded,
                prompt,
                answer[:end],
                logprobs=_recorded(loaded, answer[:end], [logits[row] for logits in output.logits[:end]]),
                stop="eos" if answer[end - 1] in eos else "length",
                decoding=asdict(decoding) | {"max_new_tokens": room, "do_sample": decoding.temperature > 0},
            )
        )
    return found


def _inputs(
    prompts: Sequence[PromptTokens], *, pad: int, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Ids with their mask, padded on the left; and where a decoder begins, of an encoder-decoder."""
    sides = [prompt.ids[: prompt.source_len] or prompt.ids for prompt in prompts]
    width = max(map(len, sides))
    ids = torch.tensor([[pad] * (width - len(side)) + list(side) for side in sides], device=device)
    mask = torch.tensor([[0] * (width - len(side)) + [1] * len(side) for side in sides], device=device)
    begin = [prompt.ids[prompt.source_len :] for prompt in prompts if prompt.source_len]
    return {"inputs": ids, "attention_mask": mask}, (
        {"decoder_input_ids": torch.tensor(begin, device=device)} if begin else {}
    )


def _recorded(loaded: LoadedModel, answer: Sequence[int], rows: Sequence[Tensor]) -> tuple[float, ...]:
    """The log-prob of every id under its own logits."""
    logprobs = []
    for t, (token, logits) in enumerate(zip(answer, rows, strict=True)):
        logprob = float(torch.log_softmax(logits.double(), dim=-1)[token])
        if not torch.isfinite(logits.amax()) or logprob != logprob:
            raise NonFiniteError(
                f"{loaded.name}: the logits for generated token {t} hold NaN or infinity in {loaded.dtype}. Load it "
                f"with --dtype float32 (or bfloat16), or check the weights."
            )
        logprobs.append(logprob)
    return tuple(logprobs)


def _config(model: PreTrainedModel, decoding: Decoding, room: int) -> Any:
    """The model's own generation settings with what was asked for."""
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


def force_response(loaded: LoadedModel, prompt: PromptTokens, *, response: str) -> Generation:
    """Take `response` as the answer: encoded once, on its own, and appended to the prompt's ids.

    Raises PromptError for an empty response or one that does not fit into the model's context.
    """
    require_text(response, what="The response")
    ids = loaded.tokenizer(response, add_special_tokens=False)["input_ids"] if response else []
    if not ids:
        raise PromptError("The response is empty: there is no token to explain. Give the answer's text.")
    own = len(prompt.ids) - prompt.source_len
    require_fits(loaded, own + len(ids), what="The prompt with the response")
    return _generation(loaded, prompt, list(ids), logprobs=None, stop="given", decoding={}, response=response)


def _generation(
    loaded: LoadedModel,
    prompt: PromptTokens,
    answer: list[int],
    *,
    logprobs: tuple[float, ...] | None,
    stop: str,
    decoding: dict[str, object],
    response: str | None = None,
) -> Generation:
    ids = (*prompt.ids, *answer)
    roles = prompt.roles + (Role.GENERATED,) * len(answer)
    # the two sides of an encoder-decoder are two texts
    sides = (ids[: prompt.source_len], ids[prompt.source_len :])
    texts = tuple(text for side in sides for text in token_texts(loaded.tokenizer, side))
    return Generation(
        ids=ids,
        prompt_len=len(prompt.ids),
        roles=roles,
        texts=texts,
        words=group_words(texts, roles),
        logprobs=logprobs,
        stop=stop,
        request=dict(prompt.request) | ({} if response is None else {"response": response}),
        decoding=decoding,
        source_len=prompt.source_len,
    )


def generate_many(
    loaded: LoadedModel, prompts: Sequence[PromptTokens], *, decoding: Decoding = Decoding(), batch_size: int = 8
) -> tuple[Generation, ...]:
    """The answers to all prompts, `batch_size` of them in one pass a step; the same as `generate` one by one.

    Rows are padded on the left and the padding is masked, so log-probs differ by rounding only (1e-4 nats in float32).
    Prompts of about the same length go together. One by one go: sampled answers, since each has its own random stream,
    prompts for which the context leaves another room than for the rest, encoder-decoders, and models that keep a
    state which padding would enter (`pads_well`).
    """
    if batch_size < 1:
        raise OptionError(f"batch_size is {batch_size}; expected at least 1.")
    if decoding.temperature > 0 or not pads_well(loaded.model):
        return tuple(generate(loaded, prompt, decoding=decoding) for prompt in prompts)
    found: dict[int, Generation] = {}
    rooms = {i: room_for(loaded, prompt, decoding) for i, prompt in enumerate(prompts)}
    order = sorted(range(len(prompts)), key=lambda i: (rooms[i], len(prompts[i].ids)))
    for _, alike in groupby(order, key=rooms.__getitem__):
        chosen = list(alike)
        for first in range(0, len(chosen), batch_size):
            part = chosen[first : first + batch_size]
            answers = generate_together(loaded, [prompts[i] for i in part], decoding=decoding)
            found.update(zip(part, answers, strict=True))
    return tuple(found[i] for i in range(len(prompts)))


def classify(loaded: LoadedModel, prompt: PromptTokens, *, label: str | None = None) -> Generation:
    """The most likely class of `prompt`, or the class `label` (its name or number), with its log-prob (nats).

    The class stands behind the prompt as the one generated token: its id is the class's number, its text its name.

    Raises PromptError for a label that the model does not have and NonFiniteError where the logits are NaN.
    """
    model = loaded.model
    ids = torch.tensor([prompt.ids], device=input_device(model))
    with frozen_eval(model), torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].double()
        try:
            read = positions_read(model, prompt.ids)
        except UnsupportedModelError:
            read = ()
    if not torch.isfinite(logits).all():
        raise NonFiniteError(
            f"{loaded.name}: the logits of the classes hold NaN or infinity in {loaded.dtype}. Load it with --dtype "
            f"float32 (or bfloat16), or check the weights."
        )
    names = label_names(loaded)
    chosen = int(logits.argmax()) if label is None else class_number(names, label, name=loaded.name)
    texts = (*token_texts(loaded.tokenizer, prompt.ids), names[chosen])
    roles = (*prompt.roles, Role.GENERATED)
    return Generation(
        ids=(*prompt.ids, chosen),
        prompt_len=len(prompt.ids),
        roles=roles,
        texts=texts,
        words=(*group_words(texts[:-1], roles[:-1]), (len(prompt.ids), len(prompt.ids) + 1)),
        logprobs=None if label is not None else (float(torch.log_softmax(logits, dim=-1)[chosen]),),
        stop="class" if label is None else "given",
        request=dict(prompt.request) | ({} if label is None else {"response": label}),
        classes=tuple(names),
        read_at=read,
    )


def label_names(loaded: LoadedModel) -> list[str]:
    """The names of a classifier's classes, in the order of its logits."""
    known = loaded.model.config.id2label
    return [str(known.get(number, f"LABEL_{number}")) for number in range(loaded.model.config.num_labels)]


def class_number(names: list[str], label: str, *, name: str) -> int:
    """The class that `label` names, by its name or its number. Raises PromptError for one that is not there."""
    if label in names:
        return names.index(label)
    if label.isdigit() and int(label) < len(names):
        return int(label)
    raise PromptError(
        f"{name} has no class {label!r}. Known: {', '.join(map(repr, names))}, or a number from 0 to {len(names) - 1}."
    )
