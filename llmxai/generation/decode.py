"""Let the model answer, or take a given answer, as exact ids with what was recorded of each."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmxai.errors import NonFiniteError, OptionError, PromptError
from llmxai.generation.prompt import PromptTokens, require_fits, require_text
from llmxai.generation.words import group_words, token_texts
from llmxai.models import LoadedModel
from llmxai.models.seams import input_device, undisturbed
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
    with undisturbed(model), torch.no_grad(), torch.random.fork_rng(devices=devices):
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


def given(loaded: LoadedModel, prompt: PromptTokens, *, response: str) -> Generation:
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
