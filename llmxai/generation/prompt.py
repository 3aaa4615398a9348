"""A raw prompt, chat messages or ids as exact token ids, with the role and the text of every token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, takewhile

from transformers import PreTrainedTokenizerBase

from llmxai.errors import PromptError
from llmxai.generation.chat import ChatInputs, Message, require_text
from llmxai.generation.placing import DOCUMENTS_STAND, chat_of, documents_text, titles_of
from llmxai.generation.template import THOUGHTS, Place, roles_and_parts
from llmxai.models import LoadedModel, ModelKind
from llmxai.models.adapters.encoder_decoder import with_decoder_start
from llmxai.models.embedding import n_embeddings
from llmxai.types import Part, PromptTokens, Role

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


Prompt = str | Sequence[Message]
"""Raw text, or chat messages."""
Offsets = list[tuple[int, int]]


def encode(loaded: LoadedModel, prompt: Prompt, chat: ChatInputs = ChatInputs()) -> PromptTokens:
    """Text unchanged, or messages through the model's chat template, as exact ids."""
    return encode_prompt(loaded, prompt, chat) if isinstance(prompt, str) else encode_messages(loaded, prompt, chat)


def encode_prompt(loaded: LoadedModel, prompt: str, chat: ChatInputs = ChatInputs()) -> PromptTokens:
    """Encode raw text as the tokenizer does by default, including special tokens; documents stand before it.

    Raises PromptError for an empty prompt, a lone surrogate, one longer than the model's context, and for what only a
    chat can have.
    """
    require_text(prompt, what="The prompt")
    if not prompt:
        raise PromptError("The prompt is empty. Give some text: there is nothing to attribute an answer to.")
    _require_no_chat(chat)
    parts = [Part("document", i, title, chat.documents[i]["text"], 0, 0, ()) for i, title in enumerate(titles_of(chat))]
    before, segments = documents_text(chat.documents, range(len(parts)))
    places = [Place(each.start, each.end, each.role, each.part, 0, each.end - each.start) for each in segments]
    text = before + prompt
    places.append(Place(len(before), len(text), Role.USER, len(parts), 0, len(prompt)))
    parts.append(Part("prompt", 0, "", prompt, 0, 0, ()))
    ids, offsets = _encode_with_offsets(loaded.tokenizer, text, special=True)
    roles, parts_told = roles_and_parts(offsets, places, parts)
    notes = (DOCUMENTS_STAND.format("the prompt"),) if chat.documents else ()
    thinks = next((last for first, last in THOUGHTS if prompt.rstrip().endswith(first)), "")
    return _finish(
        loaded,
        PromptTokens(tuple(ids), tuple(roles), {"prompt": prompt, **chat.request()}, 0, parts_told, thinks, notes),
    )


def _require_no_chat(chat: ChatInputs) -> None:
    """Raise PromptError for what a raw prompt cannot have."""
    given = {
        "tools": chat.tools,
        "chat_template_kwargs": chat.chat_template_kwargs,
        "continue_final_message": chat.continue_final_message,
        "documents_in='template'": chat.documents and chat.documents_in == "template",
    }
    if wrong := [name for name, value in given.items() if value]:
        raise PromptError(
            f"{wrong[0]} is for chats, and a raw prompt does not go through the chat template. Give messages, such as "
            f'[{{"role": "user", "content": ...}}] (--chat), or leave it out.'
        )


def encode_messages(loaded: LoadedModel, messages: Sequence[Message], chat: ChatInputs = ChatInputs()) -> PromptTokens:
    """Encode chat messages through the model's own template, up to the start of its answer.

    Raises PromptError for an empty list, a message without role or content, an assistant message at the end, a model
    without a chat template, and a template that rejects the messages, leaves out what was given with them, or changes
    with their text so that it cannot be located.
    """
    found = chat_of(loaded.tokenizer, messages, chat, name=loaded.name)
    ids, offsets = _encode_with_offsets(loaded.tokenizer, found.text)
    roles, parts = roles_and_parts(offsets, found.places, found.parts)
    request = {"messages": [dict(message) for message in messages], **chat.request()}
    return _finish(loaded, PromptTokens(tuple(ids), tuple(roles), request, 0, parts, found.thinks, found.notes))


def as_chat(loaded: LoadedModel, text: str, *, required: bool = False) -> Prompt:
    """`text` as one user message, if the model generates from left to right and has a chat template; else the text.

    With `required` it is a message in any case, which `encode` refuses without a template.
    """
    chats = loaded.kind is ModelKind.CAUSAL and bool(getattr(loaded.tokenizer, "chat_template", None))
    return [{"role": "user", "content": text}] if chats or required else text


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
    roles = tuple(Role.TEMPLATE if token in special else Role.USER for token in ids)
    return _finish(loaded, PromptTokens(tuple(ids), roles, {"input_ids": list(ids)}))


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


def _finish(loaded: LoadedModel, tokens: PromptTokens) -> PromptTokens:
    if not tokens.ids:
        raise PromptError(f"The tokenizer of {loaded.name} gives no tokens for this prompt: {dict(tokens.request)!r}.")
    require_embedded(loaded, tokens.ids)
    if loaded.kind is ModelKind.CAUSAL:
        room, what = 1, "The prompt with room for one answer token"
    else:
        room, what = 0, "The prompt"  # a class is no token, and a decoder counts its own
    require_fits(loaded.context_length, len(tokens.ids) + room, what=what, name=loaded.name)
    if tokens.ids[0] == loaded.tokenizer.bos_token_id and tokens.roles[0] == Role.TEMPLATE:
        tokens = replace(tokens, roles=(Role.BOS, *tokens.roles[1:]))
    if loaded.kind is ModelKind.ENCODER_DECODER:
        return with_decoder_start(loaded.model, tokens, name=loaded.name)
    return tokens


def _encode_with_offsets(
    tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = False
) -> tuple[list[int], Offsets]:
    """Ids, and the characters that each covers: none for the special tokens that the tokenizer adds."""
    options = {"add_special_tokens": special, "return_special_tokens_mask": True}
    if getattr(tokenizer, "is_fast", False):
        encoded = tokenizer(text, return_offsets_mapping=True, **options)
        added = encoded["special_tokens_mask"] if special else [0] * len(encoded["input_ids"])
        told = zip(encoded["offset_mapping"], added, strict=True)
        return list(encoded["input_ids"]), [(0, 0) if mark else (int(a), int(b)) for (a, b), mark in told]
    encoded = tokenizer(text, **options)
    ids = list(encoded["input_ids"])
    added = encoded["special_tokens_mask"] if special else [0] * len(ids)
    own = [token for token, mark in zip(ids, added, strict=True) if not mark]
    spans = iter(_offsets_by_text(tokenizer, own))
    return ids, [(0, 0) if mark else next(spans) for mark in added]


def _offsets_by_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> Offsets:
    """Of a tokenizer that reports none: from the text that each token adds."""
    ends = list(accumulate(len(text) for text in token_texts(tokenizer, ids)))
    starts = [0, *ends[:-1]][: len(ids)]
    # a token that ends inside a character counts for the whole character, which a later token completes
    return [(start, next((end for end in ends[i:] if end > start), start)) for i, start in enumerate(starts)]
