"""The questions of an evaluation or a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from llmxai.errors import PromptError
from llmxai.generation import with_foil
from llmxai.methods import Target, chosen_targets, span_target, token_targets
from llmxai.methods.features import CONTENT
from llmxai.models import LoadedModel
from llmxai.types import Generation

Span = tuple[int, int]
"""Half-open range of characters."""


@dataclass(frozen=True)
class Row:
    """A prompt, and what is known about its answer and the sources of the answer."""

    id: str
    source: str
    """Label of the suite or data set."""
    prompt: str | None = None
    """Raw text; exactly one of `prompt` and `messages` is given."""
    messages: tuple[Mapping[str, Any], ...] | None = None
    response: str | None = None
    """The answer to explain; None: the model generates one."""
    foil: str | None = None
    """An answer that the model did not give; the target is then the contrast with it."""
    target: str | None = None
    """What of the answer is explained, as in `chosen_targets`; None: what the evaluation asks for."""
    spans: tuple[Span, ...] = ()
    """Known sources, in characters of `text`."""
    fields: Mapping[str, str | int | float] = field(default_factory=dict)
    """Other known facts, such as the depth of a needle; they become columns of the results."""
    documents: tuple[Mapping[str, Any], ...] = ()
    """What the question is about: each with `text` and, if it has one, `title`."""
    document_spans: tuple[tuple[int, int, int], ...] = ()
    """Known sources in documents: (document, start, end), in characters of its text."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """JSON schemas of what the model may call."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Variables for the chat template."""
    continue_final_message: bool = False
    """Whether the answer continues the last message, which is the assistant's."""

    @property
    def given(self) -> dict[str, Any]:
        """What goes with the prompt, as arguments of `explain`."""
        given = {
            "documents": list(self.documents),
            "tools": list(self.tools),
            "chat_template_kwargs": dict(self.chat_template_kwargs),
            "continue_final_message": self.continue_final_message,
        }
        return {name: value for name, value in given.items() if value}

    @property
    def asked(self) -> str | tuple[Mapping[str, Any], ...]:
        """The model's input: the raw prompt, or the messages."""
        return self.messages if self.messages is not None else self.prompt or ""

    @property
    def text(self) -> str:
        """The raw prompt, or the text of the last message; empty if it has parts in place of one text."""
        said = self.prompt if self.prompt is not None else (self.messages or ({},))[-1].get("content")
        return said if isinstance(said, str) else ""


def locate(text: str, snippet: str) -> Span:
    """The position of `snippet` in `text`. Raises ValueError unless it occurs exactly once."""
    count = text.count(snippet) if snippet else 0
    if count != 1:
        raise ValueError(f"the source {snippet!r} occurs {count} times in the prompt; expected exactly once")
    start = text.index(snippet)
    return start, start + len(snippet)


@dataclass(frozen=True)
class Case:
    """One scalar F to explain, over the content tokens of the prompt."""

    generation: Generation
    target: Target
    features: tuple[int, ...]
    """Positions of the prompt's content tokens, all before the target."""
    truth: Bool[Tensor, " feature"] | None
    """Which features are known sources; None if nothing is known."""


def make_case(loaded: LoadedModel, row: Row, generation: Generation, *, target: str) -> Case:
    """The case of a row; `target` is `first` (the first generated token) or `answer` (all of them, one sum), unless the
    row names its own.

    With a foil, the target is the first token in which answer and foil differ, as a contrast of logits. Raises
    PromptError if the known sources cannot be found among the tokens, or the prompt has no content.
    """
    features = tuple(i for i in range(generation.prompt_len) if generation.roles[i] in CONTENT)
    if not features:
        raise PromptError(f"{row.id}: the prompt has no content token, so nothing can be attributed.")
    if row.foil is not None:
        (chosen,) = (target for target in token_targets(with_foil(loaded, generation, foil=row.foil)) if target.foils)
    elif row.target is not None:
        found = chosen_targets(generation, row.target)
        if len(found) != 1:
            raise PromptError(
                f"{row.id}: the target {row.target!r} gives {len(found)} targets, and an evaluation scores one. "
                f"Give answer, a range i:j or a text of the answer."
            )
        chosen = found[0]
    else:
        chosen = span_target(generation, end=1 if target == "first" else None)
    truth = None
    if row.spans or row.document_spans:
        positions = token_positions(generation, row.text, row.spans) if row.spans else frozenset()
        for number, start, end in row.document_spans:
            positions |= set(generation.part("document", number).tokens(start, end))
        truth = torch.tensor([i in positions for i in features])
        if not truth.any():
            raise PromptError(f"{row.id}: none of the known sources is a content token of the prompt.")
    return Case(generation=generation, target=chosen, features=features, truth=truth)


def token_positions(generation: Generation, text: str, spans: Sequence[Span]) -> frozenset[int]:
    """Positions of the prompt's tokens that contain a character of `spans`; spaces at a span's ends do not count.

    Raises PromptError if the tokens do not spell `text` (some tokenizers rewrite their input).
    """
    prompt = generation.texts[: generation.prompt_len]
    offset = "".join(prompt).rfind(text)
    if offset < 0:
        raise PromptError(
            "The known sources cannot be placed: the tokenizer rewrites the prompt, so characters do not map to tokens."
        )
    ends = list(accumulate(len(piece) for piece in prompt))
    found = set()
    for start, end in spans:
        piece = text[start:end]
        lo = offset + start + len(piece) - len(piece.lstrip())
        hi = offset + end - len(piece) + len(piece.rstrip())
        for i, token_end in enumerate(ends):
            token_start = token_end - len(prompt[i])
            if max(token_start + _leading(prompt[i]), lo) < min(token_end, hi):
                found.add(i)
    return frozenset(found)


def _leading(text: str) -> int:
    """Spaces in front of a token's word are not its word."""
    return len(text) - len(text.lstrip()) if text.strip() else 0
