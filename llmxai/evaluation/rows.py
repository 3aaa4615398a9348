"""One question of an evaluation or a run, before any model has seen it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Span = tuple[int, int]
"""Half-open range of characters."""


@dataclass(frozen=True)
class Row:
    """A prompt, what may be known of its answer, and where the answer comes from."""

    id: str
    source: str
    """Label of the suite or data set."""
    prompt: str | None = None
    """Raw text; exactly one of `prompt` and `messages` is given."""
    messages: tuple[Mapping[str, str], ...] | None = None
    response: str | None = None
    """The answer to explain; None: the model generates one."""
    foil: str | None = None
    """An answer that was not given: the target is then the contrast with it."""
    spans: tuple[Span, ...] = ()
    """Known sources, in characters of `text`."""
    fields: Mapping[str, str | int | float] = field(default_factory=dict)
    """What else is known, such as the depth of a needle; columns of the results."""

    @property
    def text(self) -> str:
        """The raw prompt, or the last message."""
        return self.prompt if self.prompt is not None else self.messages[-1]["content"] if self.messages else ""


def locate(text: str, snippet: str) -> Span:
    """Where `snippet` stands in `text`. Raises ValueError unless it occurs exactly once."""
    count = text.count(snippet) if snippet else 0
    if count != 1:
        raise ValueError(f"the source {snippet!r} occurs {count} times in the prompt; expected exactly once")
    start = text.index(snippet)
    return start, start + len(snippet)
