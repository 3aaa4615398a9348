"""Turn the model and prompt that a caller has into a loaded model and exact prompt ids, or say what to do instead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from numbers import Integral
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from transformers import (
    Pipeline,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TextClassificationPipeline,
    TextGenerationPipeline,
)

from llmxai.errors import OptionError, PromptError, UnsupportedModelError
from llmxai.generation import ChatInputs, chat_inputs, encode, encode_ids
from llmxai.models import LoadedModel, ModelKind, load, wrap
from llmxai.models.families import kind_of
from llmxai.models.loading import adapted_layers, is_peft
from llmxai.text import quoted
from llmxai.types import Generation, PromptTokens

AnyModel: TypeAlias = LoadedModel | str | Path | tuple[nn.Module, PreTrainedTokenizerBase] | Pipeline
"""A loaded model, a name or folder, a model with its tokenizer, or a pipeline that generates or classifies text."""
AnyPrompt: TypeAlias = str | Sequence[Any] | torch.Tensor | np.ndarray | Mapping[str, Any] | PromptTokens
"""Text, chat messages, token ids, a tokenizer's output, a row of a data set, or prompt tokens."""
COLUMNS = ("prompt", "messages", "text", "question")
"""Columns of a data set that can hold prompts; the first existing one is used."""
PAIR = "Give the model with its tokenizer: explain((model, tokenizer), ...)."


# models


def loaded_model(model: object) -> LoadedModel:
    """The model, loaded or wrapped if necessary.

    Raises OptionError or UnsupportedModelError, with advice, for anything else, and what `load` and `wrap` raise.
    """
    if isinstance(model, LoadedModel):
        return model
    if isinstance(model, str | Path):
        return load(model)
    if isinstance(model, Pipeline):
        return _from_pipeline(model)
    if isinstance(model, tuple | list) and len(model) == 2:
        return _from_pair(*model)
    raise OptionError(_no_model(model))


def _from_pipeline(pipeline: Pipeline) -> LoadedModel:
    if not isinstance(pipeline, TextGenerationPipeline | TextClassificationPipeline):
        raise UnsupportedModelError(
            f"Got a {type(pipeline).__name__}; expected a pipeline for text-generation or text-classification. If its "
            f"model generates or classifies text, give (pipeline.model, pipeline.tokenizer)."
        )
    if pipeline.tokenizer is None:
        raise OptionError(f"The {type(pipeline).__name__} has no tokenizer. Give (pipeline.model, tokenizer) instead.")
    return _from_pair(pipeline.model, pipeline.tokenizer)


def _from_pair(model: Any, tokenizer: object) -> LoadedModel:
    if isinstance(model, PreTrainedTokenizerBase):
        raise OptionError("The tokenizer came first and the model second. Give (model, tokenizer).")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        own = isinstance(getattr(tokenizer, "tokenizer", None), PreTrainedTokenizerBase)
        hint = "Give its own: (model, processor.tokenizer)." if own else "AutoTokenizer.from_pretrained(...) gives one."
        raise OptionError(f"The tokenizer is {_what(tokenizer)}; expected a transformers tokenizer. {hint}")
    known: dict[str, Any] = {}
    if is_peft(model):
        known["adapter"] = f"in memory: {', '.join(model.active_adapters)}"
        model = adapted_layers(model)
    if not isinstance(model, PreTrainedModel):
        raise OptionError(_no_model(model))
    if kind_of(model) is not ModelKind.CLASSIFIER and not model.can_generate():
        raise UnsupportedModelError(
            f"{type(model).__name__} neither generates text nor classifies it, so there is no answer to explain. Load "
            f"the same weights with AutoModelForCausalLM, AutoModelForSeq2SeqLM or AutoModelForSequenceClassification."
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        known["adapter"] = f"in memory: {', '.join(model.active_adapters())}"
    return wrap(model, tokenizer, **known)


def _no_model(model: object) -> str:
    expected = "Expected a name or folder, load(...), (model, tokenizer), or a text-generation pipeline."
    if isinstance(model, PreTrainedModel) or is_peft(model):
        return f"{type(model).__name__} came without its tokenizer. {PAIR}"
    if isinstance(model, PreTrainedTokenizerBase):
        return f"A tokenizer came without its model. {PAIR}"
    if isinstance(model, nn.Module):
        return (
            f"{type(model).__name__} is a torch module, but not a transformers model. {expected} Where the model is "
            f"wrapped, give what is inside: model._orig_mod of a compiled one, model.module of a parallel one."
        )
    return f"The model is {_what(model)}. {expected}"


# one prompt


def prompt_tokens(loaded: LoadedModel, prompt: object, chat: ChatInputs = ChatInputs()) -> PromptTokens:
    """The prompt as exact ids with roles; `chat`: what goes with messages, or documents with a text.

    Padding that an attention mask marks at either end is dropped: the model would not have seen it. Raises PromptError
    for anything that is not a prompt, or is several prompts at once.
    """
    prompt = _plain(prompt)
    if isinstance(prompt, PromptTokens):
        require_alone(chat, "prompt tokens")
        return prompt
    if isinstance(prompt, str):
        return encode(loaded, prompt, chat)
    if isinstance(prompt, Mapping):
        return _from_mapping(loaded, prompt, chat)
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
        raise PromptError(_no_prompt(prompt))
    items = [_plain(item) for item in prompt]
    if len(items) == 1 and isinstance(items[0], list | tuple):
        return prompt_tokens(loaded, items[0], chat)  # a batch of one
    if items and isinstance(items[0], str | list | tuple):
        kind = "texts" if isinstance(items[0], str) else "prompts"
        raise PromptError(f"The prompt is a list of {len(items)} {kind}. Give one, or use explain_many for several.")
    if items and isinstance(items[0], int | float | Integral):
        require_alone(chat, "token ids")
        return encode_ids(loaded, _whole(items))
    for number, item in enumerate(items):
        if not isinstance(item, Mapping):
            raise PromptError(f"Message {number} is {_what(item)}; expected an object with `role` and `content`.")
    return encode(loaded, items, chat)


def require_alone(chat: ChatInputs, what: str) -> None:
    """Raise OptionError for anything that should go with a prompt that is already made."""
    if given := list(chat.request()):
        raise OptionError(f"{given[0]} was given with {what}, which are already made. Give text or messages with it.")


def _from_mapping(loaded: LoadedModel, row: Mapping[str, Any], chat: ChatInputs) -> PromptTokens:
    """A tokenizer's output, or a row of a data set."""
    if "input_ids" in row:
        require_alone(chat, "token ids")
        sequences = _sequences(row)
        if len(sequences) != 1:
            raise PromptError(
                f"Got {len(sequences)} sequences of token ids. Give one, or use explain_many for several."
            )
        return encode_ids(loaded, sequences[0])
    if "role" in row and "content" in row:
        raise PromptError("The prompt is one message. Put it into a list: [message].")
    for name in COLUMNS:
        if row.get(name) is not None:
            return prompt_tokens(loaded, row[name], _of_row(row, chat))
    raise PromptError(
        f"The prompt is a mapping with {', '.join(map(repr, row)) or 'nothing'}; expected a tokenizer's output "
        f"('input_ids') or a row of a data set with a column {', '.join(COLUMNS)}. Rename the column, or give its "
        f"value alone."
    )


def _of_row(row: Mapping[str, Any], chat: ChatInputs) -> ChatInputs:
    """With the documents and tools of a data set's row, where it has some."""
    own = {name: _plain(row[name]) for name in ("documents", "tools") if row.get(name) is not None}
    if not own:
        return chat
    given = {each.name: getattr(chat, each.name) for each in fields(chat)}
    return chat_inputs(**{**given, **own})


def _no_prompt(prompt: object) -> str:
    if isinstance(getattr(prompt, "generation", None), Generation):
        return "The prompt is an Explanation. To explain the same answer again, give explanation.generation."
    hint = " Decode it: prompt.decode()." if isinstance(prompt, bytes) else ""
    if isinstance(prompt, Iterable) and not hint:
        hint = " If it holds several prompts, use explain_many."
    return f"The prompt is {_what(prompt)}; expected text, a list of messages, or token ids.{hint}"


# several prompts


def prompts_of(
    loaded: LoadedModel, prompts: object, chat: ChatInputs = ChatInputs()
) -> list[PromptTokens | Generation]:
    """Every prompt of an iterable or a data set; existing answers are kept.

    Raises PromptError for anything that is not a collection of prompts; for an invalid prompt, it gives its number.
    """
    found: list[PromptTokens | Generation] = []
    for number, one in enumerate(_each(prompts), start=1):
        with numbered(number):
            found.append(one if isinstance(one, Generation) else prompt_tokens(loaded, one, chat))
    return found


@contextmanager
def numbered(number: int) -> Iterator[None]:
    """Put the number of the prompt before the message of a PromptError."""
    try:
        yield
    except PromptError as error:
        raise PromptError(f"Prompt {number}: {error}") from error


def _each(prompts: object) -> Iterator[Any]:
    """The prompts one by one: rows of a table, sequences of a batch, items of anything else."""
    if isinstance(prompts, str | bytes | PromptTokens | Generation):
        raise PromptError("explain_many takes several prompts. Give a list, [prompt], or use explain for one.")
    if isinstance(prompts, Mapping):
        return iter(_batch(prompts))
    for name, arguments in (("to_pylist", ()), ("to_dicts", ()), ("to_dict", ("records",))):
        # tables of pyarrow, polars and pandas, none of which needs to be imported; a pandas Series has no columns
        if hasattr(prompts, name) and (name == "to_pylist" or hasattr(prompts, "columns")):
            return iter(getattr(prompts, name)(*arguments))
    prompts = _plain(prompts)
    if not isinstance(prompts, Iterable):
        raise PromptError(f"The prompts are {_what(prompts)}. Give a list, a data set, or any iterable of prompts.")
    if isinstance(prompts, Sequence) and len(prompts):
        first = prompts[0]
        if isinstance(first, int | float | Integral):
            raise PromptError("The prompts are the token ids of one. Give [ids], or use explain for one prompt.")
        if isinstance(first, Mapping) and "role" in first and "content" in first:
            raise PromptError("The prompts are the messages of one chat. Give [messages], or use explain for one.")
    return iter(prompts)


def _batch(columns: Mapping[str, Any]) -> list[Any]:
    """A tokenizer's output for several texts, or some rows of a data set as columns."""
    if "input_ids" in columns:
        return _sequences(columns)
    name = next((name for name in COLUMNS if columns.get(name) is not None), None)
    values = _plain(columns[name]) if name is not None else None
    if isinstance(values, list | tuple) and not any(isinstance(value, Mapping) for value in values):
        return list(values)
    if name is not None:
        raise PromptError("The prompts are one row of a data set. Give [row], or use explain for one.")
    keys = ", ".join(map(repr, columns)) or "nothing"
    raise PromptError(
        f"The prompts are a mapping with {keys}; expected a data set with a column {', '.join(COLUMNS)}. Where these "
        f"are the splits of a data set, give one: explain_many(model, data['train'])."
    )


# token ids


def _sequences(encoding: Mapping[str, Any]) -> list[list[int]]:
    """The sequences of a tokenizer's output, without their padding."""
    ids, mask, types = (_rows(encoding.get(name)) for name in ("input_ids", "attention_mask", "token_type_ids"))
    if any(any(row) for row in types):
        raise PromptError(
            "The tokenizer's output holds a pair of texts (token_type_ids other than 0), and llmxai gives the model "
            "one. Join both into one text."
        )
    if not mask:
        return [_whole(row) for row in ids]
    if [len(row) for row in ids] != [len(row) for row in mask]:
        raise PromptError("input_ids and attention_mask differ in shape. Give both as the tokenizer returned them.")
    return [_unpadded(_whole(row), seen) for row, seen in zip(ids, mask, strict=True)]


def _unpadded(ids: list[int], seen: Sequence[Any]) -> list[int]:
    """The ids that the mask keeps; they must be contiguous, since padding is at the ends."""
    kept = [i for i, one in enumerate(seen) if one]
    if kept and kept[-1] - kept[0] + 1 != len(kept):
        raise PromptError(
            "The attention mask hides tokens in the middle of the prompt, which is not padding. Remove them from "
            "input_ids, and leave out attention_mask."
        )
    return [ids[i] for i in kept]


def _rows(values: object) -> list[Any]:
    """One row per sequence; a single sequence is one row, an empty value none."""
    values = _plain(values)
    if values is None:
        return []
    rows = [_plain(row) for row in values] if isinstance(values, Iterable) else [values]
    return rows if rows and all(isinstance(row, list | tuple) for row in rows) else [rows]


def _whole(values: Sequence[Any]) -> list[int]:
    """Token ids as Python's integers."""
    for value in values:
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise PromptError(
                f"Token ids must be whole numbers, and {_what(value)} is not. Give the tokenizer's output; ids.long() "
                f"converts a tensor."
            )
    return [int(value) for value in values]


def _plain(value: Any) -> Any:
    """Tensors, arrays, pandas columns and their scalars as Python lists and numbers; anything else unchanged."""
    return value.tolist() if hasattr(value, "tolist") else value


def _what(value: object) -> str:
    """A value in a sentence: `None`, `the float 1.5`, `a dict`."""
    if value is None:
        return "None"
    name = type(value).__name__
    if isinstance(value, int | float):
        return f"the {name} {value}"
    return f"the {name} {quoted(value)}" if isinstance(value, str) else f"a {name}"
