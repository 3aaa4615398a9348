"""Let the model answer, or take a given answer, as exact ids with what was recorded of each."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass

import torch

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
    model = loaded.model
    limit = loaded.context_length
    own = prompt.ids[prompt.source_len :]  # what stands on the side that answers
    room = decoding.max_new_tokens if limit is None else min(decoding.max_new_tokens, limit - len(own))
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
    ids = torch.tensor([prompt.ids[: prompt.source_len] or prompt.ids], device=input_device(model))
    begin = {"decoder_input_ids": torch.tensor([own], device=ids.device)} if prompt.source_len else {}
    devices = [ids.device.index or 0] if ids.device.type == "cuda" else []
    with undisturbed(model), torch.no_grad(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(decoding.seed)
        output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config, **begin)
    answer = output.sequences[0, len(own) :].tolist()
    logprobs = []
    for t, (token, logits) in enumerate(zip(answer, output.logits, strict=True)):
        logprob = float(torch.log_softmax(logits[0].double(), dim=-1)[token])
        if not torch.isfinite(logits[0].amax()) or logprob != logprob:
            raise NonFiniteError(
                f"{loaded.name}: the logits for generated token {t} hold NaN or infinity in {loaded.dtype}. Load it "
                f"with --dtype float32 (or bfloat16), or check the weights."
            )
        logprobs.append(logprob)
    eos_ids = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    return _generation(
        loaded,
        prompt,
        answer,
        logprobs=tuple(logprobs),
        stop="eos" if answer[-1] in eos_ids else "length",
        decoding=asdict(decoding) | {"max_new_tokens": room, "do_sample": sampled},
    )


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
