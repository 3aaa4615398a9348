"""A raw prompt, chat messages or ids as exact token ids, with the role and the text of every token.

Roles come from the chat template itself: it is rendered twice, with the real contents and with markers in their place,
and the text at the markers is content. Nothing depends on the name of the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from llmxai.errors import PromptError
from llmxai.models import LoadedModel, ModelKind
from llmxai.models.adapters.encoder_decoder import with_decoder_start
from llmxai.models.embedding import n_embeddings
from llmxai.text import TooMuchError, bounded
from llmxai.types import PromptTokens, Role

WINDOW = 8
"""Tokens of left context that are decoded together with a token (some tokenizers drop a leading space)."""
LONGEST_CHARACTER = 4
"""A character is at most four byte tokens."""
INCOMPLETE = "\ufffd"
"""What bytes that are no character, or not yet one, are decoded to."""


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, ...]:
    """The text that each token adds, so that the texts joined are the decoded sequence.

    A token that ends in the middle of a character adds `""`; the token that completes it adds the character. Decoded
    in pieces that end between characters. Where byte tokens are no text, tokenizers with byte fallback decode the whole
    run of them to U+FFFD, complete characters included; those in an earlier piece are shown here all the same.
    """

    def decode(first: int, last: int) -> str:
        return str(
            tokenizer.decode(list(ids[first:last]), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    def anchor_of(cut: int) -> int | None:
        """Where decoding may begin so that the text before `cut` is complete and what follows leaves it so, or None."""
        for first in range(max(0, cut - WINDOW), cut):
            before = decode(first, cut)
            if not before.endswith(INCOMPLETE):
                later = (decode(first, cut + more) for more in range(1, LONGEST_CHARACTER + 1))
                return first if any(text.startswith(before) for text in later) else None
        return None

    texts: list[str] = []
    anchor = 0
    while (start := len(texts)) < len(ids):
        cuts = ((cut, anchor_of(cut)) for cut in range(start + WINDOW, len(ids)))
        end, following = next(((cut, first) for cut, first in cuts if first is not None), (len(ids), 0))
        whole, at = decode(anchor, end), len(decode(anchor, start))
        for i in range(start, end):
            alike = takewhile(lambda pair: pair[0] == pair[1], zip(decode(anchor, i + 1), whole, strict=False))
            reach = max(at, sum(1 for _ in alike))
            texts.append(whole[at:reach])
            at = reach
        anchor = following
    return tuple(texts)


Message = Mapping[str, Any]
Prompt = str | Sequence[Message]
"""Raw text, or chat messages."""

MESSAGE_ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "tool": Role.TOOL,
    "function": Role.TOOL,
    "ipython": Role.TOOL,
    "assistant": Role.CONTEXT,
    "model": Role.CONTEXT,
    "context": Role.CONTEXT,
    "document": Role.CONTEXT,
    "documents": Role.CONTEXT,
}
STRUCTURE_KEYS = frozenset({"role", "type", "id", "tool_call_id"})
"""Fields of a message that control the template and are not shown to the model as content."""


@dataclass(frozen=True)
class _Span:
    """Characters [start, end) of the rendered chat that are a message's content."""

    start: int
    end: int
    role: Role


def encode(loaded: LoadedModel, prompt: Prompt) -> PromptTokens:
    """Text unchanged, or messages through the model's chat template, as exact ids."""
    return encode_prompt(loaded, prompt) if isinstance(prompt, str) else encode_messages(loaded, prompt)


def encode_prompt(loaded: LoadedModel, prompt: str) -> PromptTokens:
    """Encode raw text as the tokenizer does by default, including special tokens.

    Raises PromptError for an empty prompt, a lone surrogate, or one longer than the model's context.
    """
    require_text(prompt, what="The prompt")
    if not prompt:
        raise PromptError("The prompt is empty. Give some text: there is nothing to attribute an answer to.")
    encoded = loaded.tokenizer(prompt, return_special_tokens_mask=True)
    ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
    roles = [Role.TEMPLATE if mark else Role.USER for mark in special]
    return _finish(loaded, ids, roles, request={"prompt": prompt})


def encode_messages(loaded: LoadedModel, messages: Sequence[Message]) -> PromptTokens:
    """Encode chat messages through the model's own template, up to the start of its answer.

    Raises PromptError for an empty list, a message without role or content, an assistant message at the end, a model
    without a chat template, and a template that rejects the messages.
    """
    tokenizer = loaded.tokenizer
    require_messages(messages)
    if not getattr(tokenizer, "chat_template", None):
        raise PromptError(
            f"{loaded.name} has no chat template, so messages cannot be turned into its prompt. Give the whole "
            f"prompt as text instead (--prompt), or use an instruction-tuned model."
        )
    rendered = _render(tokenizer, messages, name=loaded.name)
    spans = _content_spans(rendered, messages, render=lambda m: _render(tokenizer, m, name=loaded.name))
    ids, offsets = _encode_with_offsets(tokenizer, rendered)
    roles = [_role_at(spans, start, end) for start, end in offsets]
    return _finish(loaded, ids, roles, request={"messages": [dict(m) for m in messages]})


def encode_ids(loaded: LoadedModel, ids: Sequence[int]) -> PromptTokens:
    """Token ids unchanged; special tokens get the role `template`, the others `user`.

    Raises PromptError for an empty list or an id outside the vocabulary.
    """
    if not ids:
        raise PromptError("There are no token ids. Give at least one.")
    size = n_embeddings(loaded.model) or len(loaded.tokenizer)
    if strange := [token for token in ids if not 0 <= token < size]:
        raise PromptError(f"Token id {strange[0]} does not exist: {loaded.name} has {size} tokens.")
    special = set(loaded.tokenizer.all_special_ids)
    roles = [Role.TEMPLATE if token in special else Role.USER for token in ids]
    return _finish(loaded, ids, roles, request={"input_ids": list(ids)})


def require_text(text: str, *, what: str) -> None:
    """Raise PromptError if `text` contains half of a surrogate pair, which no tokenizer can encode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{what} holds a lone surrogate (U+{ord(text[error.start]):04X} at character {error.start}). The other "
            f"half was lost, often by cutting a string. Fix or remove that character."
        ) from error


def require_embedded(loaded: LoadedModel, ids: Sequence[int]) -> None:
    """Raise PromptError for an id without an embedding: its token was added to the tokenizer and not to the model."""
    size = n_embeddings(loaded.model)
    strange = [token for token in ids if size is not None and not 0 <= token < size]
    if strange:
        raise PromptError(
            f"Token {strange[0]} ({loaded.tokenizer.decode([strange[0]])!r}) has no embedding: {loaded.name} has "
            f"{size} of them, so its tokenizer knows tokens that the model does not. Leave that token out, or use the "
            "tokenizer that the model was trained with."
        )


def require_fits(limit: int | None, n_tokens: int, *, what: str, name: str) -> None:
    """Raise PromptError if `n_tokens` are more than the model takes."""
    if limit is not None and n_tokens > limit:
        raise PromptError(
            f"{what} has {n_tokens} tokens and {name} takes {limit}. Shorten it by {n_tokens - limit} tokens "
            f"or use a model with a longer context."
        )


def _finish(
    loaded: LoadedModel, ids: Sequence[int], roles: Sequence[Role], *, request: Mapping[str, Any]
) -> PromptTokens:
    if not ids:
        raise PromptError(f"The tokenizer of {loaded.name} gives no tokens for this prompt: {dict(request)!r}.")
    require_embedded(loaded, ids)
    if loaded.kind is ModelKind.CAUSAL:
        room, what = 1, "The prompt with room for one answer token"
    else:
        room, what = 0, "The prompt"  # a class is no token, and a decoder counts its own
    require_fits(loaded.context_length, len(ids) + room, what=what, name=loaded.name)
    starts = ids[0] == loaded.tokenizer.bos_token_id and roles[0] == Role.TEMPLATE
    first = Role.BOS if starts else roles[0]
    tokens = PromptTokens(ids=tuple(ids), roles=(first, *roles[1:]), request=request)
    if loaded.kind is ModelKind.ENCODER_DECODER:
        return with_decoder_start(loaded.model, tokens, name=loaded.name)
    return tokens


def require_messages(messages: Sequence[Message]) -> None:
    """Raise PromptError for messages that are no chat to be answered. Needs no model."""
    if not messages:
        raise PromptError('There are no messages. Give at least one, such as {"role": "user", "content": "..."}.')
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise PromptError(f"Message {index} is {message!r}; expected an object with `role` and `content`.")
        if not isinstance(message["role"], str) or message["role"] not in MESSAGE_ROLES:
            raise PromptError(f"Message {index} has the role {message['role']!r}. Known: {', '.join(MESSAGE_ROLES)}.")
        _require_content(message, index)
        for text in _texts(message):
            require_text(text, what=f"Message {index}")
    if MESSAGE_ROLES[messages[-1]["role"]] == Role.CONTEXT and messages[-1]["role"] in ("assistant", "model"):
        raise PromptError(
            "The last message is the assistant's. To explain that answer, remove it from the messages and pass it as "
            "the response (--response). To generate a new one, end with a user or tool message."
        )


def _require_content(message: Message, index: int) -> None:
    """Refuse other content: a template would print a number, or the word None, as part of the conversation."""
    content = message["content"]
    only_calls = content is None and (message.get("tool_calls") or message.get("function_call"))
    if not isinstance(content, str | list | tuple | Mapping) and not only_calls:
        raise PromptError(f"Message {index} has the content {content!r}; expected text or a list of parts.")


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, name: str) -> str:
    said = [dict(message) for message in messages]
    try:  # the template is the model's, and may never end
        return str(
            bounded(lambda: str(tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)))
        )
    except TooMuchError as error:
        raise PromptError(f"The chat template of {name} cannot be used: {error}.") from error
    except ValueError as error:
        raise PromptError(f"The chat template of {name} rejects these messages: {error}") from error


def _encode_with_offsets(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return list(encoded["input_ids"]), [(int(a), int(b)) for a, b in encoded["offset_mapping"]]
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    ends = list(accumulate(len(text) for text in token_texts(tokenizer, ids)))
    starts = [0, *ends[:-1]][: len(ids)]
    # a token that ends inside a character counts for the whole character, which a later token completes
    return ids, [(start, next((end for end in ends[i:] if end > start), start)) for i, start in enumerate(starts)]


def _role_at(spans: Sequence[_Span], start: int, end: int) -> Role:
    """The role of most of a token's characters; content wins a tie."""
    best, most = Role.TEMPLATE, 0
    inside = 0
    for span in spans:
        overlap = min(end, span.end) - max(start, span.start)
        if overlap > 0:
            inside += overlap
            if overlap > most:
                best, most = span.role, overlap
    return best if most and 2 * inside >= end - start else Role.TEMPLATE


def _content_spans(
    rendered: str, messages: Sequence[Message], *, render: Callable[[Sequence[Message]], str]
) -> list[_Span]:
    """The position of the contents in the rendered chat."""
    leaves = [(text, MESSAGE_ROLES[message["role"]]) for message in messages for text in _texts(message) if text]
    marker = _marker(rendered)
    try:
        skeleton = render(_with_markers(messages, marker))
    except PromptError:
        return _spans_by_search(rendered, leaves)
    parts = re.split(f"{marker}(\\d+){marker}", skeleton)
    order = [leaves[int(index)] for index in parts[1::2]]
    return _spans_by_skeleton(rendered, parts[0::2], order) or _spans_by_search(rendered, leaves)


def _spans_by_skeleton(rendered: str, pieces: Sequence[str], leaves: Sequence[tuple[str, Role]]) -> list[_Span] | None:
    """Match template piece, content, template piece, ...; None if the rendered chat does not match."""
    if not rendered.startswith(pieces[0]):
        return None
    spans, at = [], len(pieces[0])
    for (text, role), piece in zip(leaves, pieces[1:], strict=True):
        for form in (text, text.strip(), text.rstrip(), text.lstrip()):
            end = at + len(form)
            if rendered.startswith(form, at) and rendered.startswith(piece, end):
                break
        else:
            return None
        spans.append(_Span(at, end, role))
        at = end + len(piece)
    return spans if at == len(rendered) else None


def _spans_by_search(rendered: str, leaves: Sequence[tuple[str, Role]]) -> list[_Span]:
    """For templates that change with the content: find each content's next occurrence in the text."""
    spans, at = [], 0
    for text, role in leaves:
        form = text.strip()
        start = rendered.find(form, at) if form else -1
        if start >= 0:
            at = start + len(form)
            spans.append(_Span(start, at, role))
    return spans


def _marker(text: str) -> str:
    """A private-use character that does not occur in the text."""
    return next(chr(code) for code in range(0xE000, 0xF900) if chr(code) not in text)


def _texts(value: Any, *, key: str | None = None) -> list[str]:
    """Every string in a message that is shown to the model as content, in order."""
    if isinstance(value, str):
        return [] if key in STRUCTURE_KEYS else [value]
    if isinstance(value, Mapping):
        return [text for k, v in value.items() for text in _texts(v, key=k)]
    if isinstance(value, list | tuple):
        return [text for v in value for text in _texts(v, key=key)]
    return []


def _with_markers(messages: Sequence[Message], marker: str) -> list[Message]:
    """The messages with `marker i marker` in place of non-empty text number i."""
    count = iter(range(1 << 30))

    def swap(value: Any, key: str | None = None) -> Any:
        if isinstance(value, str):
            return value if key in STRUCTURE_KEYS or not value else f"{marker}{next(count)}{marker}"
        if isinstance(value, Mapping):
            return {k: swap(v, k) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [swap(v, key) for v in value]
        return value

    return [swap(message) for message in messages]
