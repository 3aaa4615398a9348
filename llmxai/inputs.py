"""What people have in hand, as a loaded model and exact prompt ids; or one paragraph that says what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import Pipeline, PreTrainedModel, PreTrainedTokenizerBase

from llmxai.errors import OptionError, PromptError
from llmxai.generation import Message, encode, encode_ids
from llmxai.models import LoadedModel, load, wrap
from llmxai.types import PromptTokens

AnyModel: TypeAlias = LoadedModel | str | Path | tuple[PreTrainedModel, PreTrainedTokenizerBase] | Pipeline
"""A loaded model, a name or folder, a model with its tokenizer, or a text-generation pipeline."""
AnyPrompt: TypeAlias = str | Sequence[Message] | Sequence[int] | torch.Tensor | Mapping[str, Any] | PromptTokens
"""Text, chat messages, token ids, what a tokenizer returned, or prompt tokens."""
COLUMNS = ("prompt", "messages", "text", "question")
"""Columns of a data set that hold prompts, the first that is there."""


def loaded_model(model: AnyModel) -> LoadedModel:
    """The model, loaded or wrapped where it is not yet. Raises OptionError for anything else, with what to do."""
    if isinstance(model, LoadedModel):
        return model
    if isinstance(model, str | Path):
        return load(model)
    if isinstance(model, Pipeline):
        return wrap(model.model, _tokenizer(model))
    if isinstance(model, tuple) and len(model) == 2 and isinstance(model[0], PreTrainedModel):
        return wrap(*model)
    if isinstance(model, PreTrainedModel):
        raise OptionError(
            f"{type(model).__name__} came without its tokenizer. Give both, as explain((model, tokenizer), ...), or "
            f"wrap(model, tokenizer)."
        )
    raise OptionError(
        f"A model was expected and a {type(model).__name__} came. Give a name or folder, load(...), "
        f"(model, tokenizer), or a text-generation pipeline."
    )


def _tokenizer(pipeline: Pipeline) -> PreTrainedTokenizerBase:
    if pipeline.tokenizer is None:
        raise OptionError(f"The {pipeline.task} pipeline has no tokenizer. Give (model, tokenizer) instead.")
    return pipeline.tokenizer


def prompt_tokens(loaded: LoadedModel, prompt: AnyPrompt) -> PromptTokens:
    """The prompt as exact ids with roles.

    Raises PromptError for what cannot be one, or is several prompts at once.
    """
    if isinstance(prompt, PromptTokens):
        return prompt
    if isinstance(prompt, str):
        return encode(loaded, prompt)
    if isinstance(prompt, Mapping):
        if "input_ids" not in prompt:
            raise PromptError(
                f"The prompt is a mapping with {', '.join(map(repr, prompt)) or 'nothing'}; expected text, a list of "
                f"messages, or a tokenizer's output with 'input_ids'."
            )
        return encode_ids(loaded, _ids(prompt["input_ids"]))
    if isinstance(prompt, torch.Tensor) or (_listed(prompt) and prompt and isinstance(prompt[0], int)):
        return encode_ids(loaded, _ids(prompt))
    if _listed(prompt) and prompt and isinstance(prompt[0], str):
        raise PromptError("The prompt is a list of texts. Give one text, or use explain_many for several.")
    if _listed(prompt):
        return encode(loaded, list(prompt))  # type: ignore[arg-type]
    raise PromptError(f"The prompt is a {type(prompt).__name__}; expected text, a list of messages, or token ids.")


def prompts_of(loaded: LoadedModel, prompts: Iterable[Any]) -> list[PromptTokens]:
    """Every prompt of an iterable or a data set; an error says the number of the one that it concerns."""
    if isinstance(prompts, str | Mapping):
        raise PromptError("explain_many takes several prompts; give a list of them, or use explain for one.")
    found = []
    for number, one in enumerate(prompts, start=1):
        try:
            found.append(prompt_tokens(loaded, _column(one)))
        except PromptError as error:
            raise PromptError(f"Prompt {number}: {error}") from error
    return found


def _column(one: Any) -> Any:
    """The prompt of a row of a data set; anything else as it is."""
    if not isinstance(one, Mapping) or "input_ids" in one or "role" in one:
        return one
    for name in COLUMNS:
        if one.get(name) is not None:
            return one[name]
    raise PromptError(
        f"The row has the columns {', '.join(one) or 'none'}; expected one of {', '.join(COLUMNS)}. Rename it, or give "
        f"the column alone: explain_many(model, data['column'])."
    )


def _ids(values: Any) -> list[int]:
    """Token ids of one sequence; a batch of one is unpacked."""
    ids = values.tolist() if isinstance(values, torch.Tensor) else list(values)
    if ids and isinstance(ids[0], Sequence):
        if len(ids) > 1:
            raise PromptError(f"{len(ids)} sequences of token ids came; give one, or use explain_many.")
        ids = list(ids[0])
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise PromptError("Token ids are expected to be whole numbers.")
    return ids


def _listed(prompt: object) -> bool:
    return isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes)
