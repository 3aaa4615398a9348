"""A row as one model sees it: exact ids, one target, the features, and which of them are the known sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Bool
from torch import Tensor

from llmxai.errors import PromptError
from llmxai.evaluation.rows import Row, Span
from llmxai.generation import Decoding, against, encode_messages, encode_prompt, generate, given
from llmxai.methods import Target, span_target, token_targets
from llmxai.methods._path import CONTENT
from llmxai.models import LoadedModel
from llmxai.types import Generation


@dataclass(frozen=True)
class Case:
    """One scalar F to explain, over the content tokens of the prompt."""

    generation: Generation
    target: Target
    features: tuple[int, ...]
    """Positions of the prompt's content tokens, all before the target."""
    truth: Bool[Tensor, " feature"] | None
    """Which features are known to be sources; None where nothing is known."""

    @property
    def t(self) -> tuple[int, ...]:
        """The generated tokens (0-based) that the target speaks of."""
        return tuple(position + 1 - self.generation.prompt_len for position in self.target.positions)


def answer_row(loaded: LoadedModel, row: Row, *, decoding: Decoding = Decoding()) -> Generation:
    """The row's prompt with its answer: the given one, or the model's own."""
    if row.messages is not None:
        prompt = encode_messages(loaded, row.messages)
    else:
        prompt = encode_prompt(loaded, row.prompt or "")
    if row.response is not None:
        return given(loaded, prompt, response=row.response)
    return generate(loaded, prompt, decoding=decoding)


def make_case(loaded: LoadedModel, row: Row, generation: Generation, *, target: str) -> Case:
    """The case of a row; `target` is `first` (the first generated token) or `answer` (all of them, one sum).

    With a foil it is the first token in which the answer and the foil differ, as a contrast of logits.
    Raises PromptError where the known sources cannot be found among the tokens, or the prompt has no content.
    """
    features = tuple(i for i in range(generation.prompt_len) if generation.roles[i] in CONTENT)
    if not features:
        raise PromptError(f"{row.id}: the prompt has no content token, so nothing can be attributed.")
    if row.foil is not None:
        (chosen,) = (target for target in token_targets(against(loaded, generation, foil=row.foil)) if target.foils)
    else:
        chosen = span_target(generation, end=1 if target == "first" else None)
    truth = None
    if row.spans:
        positions = token_positions(generation, row.text, row.spans)
        truth = torch.tensor([i in positions for i in features])
        if not truth.any():
            raise PromptError(f"{row.id}: none of the known sources is a content token of the prompt.")
    return Case(generation=generation, target=chosen, features=features, truth=truth)


def token_positions(generation: Generation, text: str, spans: Sequence[Span]) -> frozenset[int]:
    """Positions of the prompt's tokens that hold a character of `spans`; spaces at a span's ends do not count.

    Raises PromptError where the tokens do not spell `text` (some tokenizers rewrite what they read).
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
