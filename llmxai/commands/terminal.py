"""What `llmxai explain` prints for a person: the answer, the first sources of its words, the verdict, the path."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.style import Style
from rich.text import Text

from llmxai.names import Status, Unit
from llmxai.text import quoted, trimmed

if TYPE_CHECKING:
    from llmxai.explanation import Explanation
    from llmxai.types import Effects, Generation, Replay, Target

MOST_WORDS = 24
"""Words of the answer that are listed."""
MOST_SOURCES = 3
"""Sources of each."""
WIDEST = 20
"""Characters of a word or a source."""
STYLES = {
    Status.CONFIRMED: "green",
    Status.CONTRADICTED: "red",
    Status.UNDECIDED: "yellow",
    Status.UNCONVERGED: "magenta",
}
STRONG, SOURCE = "bold cyan", "cyan"
"""A source without which the word would lose more than half of its probability, and any other."""


def out() -> Console:
    """Standard output: colours and links on a terminal (no colours with NO_COLOR), plain lines elsewhere."""
    return Console(file=sys.stdout, highlight=False, soft_wrap=True)


def print_lines(lines: Sequence[Text]) -> None:
    console = out()
    for line in lines:
        console.print(line, soft_wrap=True)


def first_lines(
    generation: Generation, targets: Sequence[Target], replay: Replay, effects: Effects | None
) -> list[Text]:
    """What is known before the gradients: the answer and, once removals are measured, the sources of its words."""
    lines = [_answer(generation)]
    if effects is None:
        return lines
    words = _answer_words(generation, targets)
    width = _width(generation, words)
    for tokens in words[:MOST_WORDS]:
        sources = _removed(generation, targets, replay, effects, tokens)
        lines.append(Text.assemble("  ", _padded(_word(generation, tokens), width), "  ", sources))
    return [*lines, *_more(words)]


def summary(explanation: Explanation) -> list[Text]:
    """The answer, the status and the first sources of each word, and the verdict in one sentence."""
    generation, foil = explanation.generation, explanation.generation.foil
    lines = [_answer(generation)]
    if foil is not None:
        own = generation.texts[generation.prompt_len + foil.t]
        lines.append(Text(f"contrast: token {foil.t} is {own!r} and not {foil.text!r}"))
    words = explanation.answer_words()
    width = _width(generation, [word.tokens for word in words])
    for word in words[:MOST_WORDS]:
        if explanation.effects is not None:
            sources = _removed(generation, explanation.targets, explanation.replay, explanation.effects, word.tokens)
        else:
            given = [s for s in word.sources() if s.tokens[0] < generation.prompt_len][:MOST_SOURCES]
            sources = Text(", ").join(Text.assemble((_named(s.text), SOURCE), f" {s.value:+.2f} nats") for s in given)
        shown = _padded(_word(generation, word.tokens), width)
        shown.stylize(STYLES[word.status])
        status = Text(f"{word.status:12}", STYLES[word.status])
        lines.append(Text.assemble("  ", shown, "  ", status, "  ", sources))
    return [*lines, *_more(words), Text(verdict_sentence(explanation), "bold")]


def verdict_sentence(explanation: Explanation) -> str:
    """What the page says below "Can I trust this?"."""
    from llmxai.report.summary import trust_text
    from llmxai.store import to_json

    return _printable(trust_text(to_json(explanation)))


def link(path: Path) -> Text:
    """A path that a terminal can open; plain text elsewhere."""
    return Text(str(path), Style(link=path.resolve().as_uri(), underline=True) if out().is_terminal else "")


def _answer(generation: Generation) -> Text:
    end = len(generation.texts) - (generation.stop == "eos")
    answer = "".join(generation.texts[generation.prompt_len : end])
    cut = {"length": "  (cut here)", "given": "  (given)"}.get(generation.stop, "")
    return Text.assemble("answer: ", (_printable(answer), "bold"), cut)


def _printable(text: str) -> str:
    """With everything that a terminal would obey escaped; line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _answer_words(generation: Generation, targets: Sequence[Target]) -> list[Unit]:
    """The answer's words as ranges of generated tokens (`Explanation.answer_words`), or the targets if larger."""
    from llmxai.types import said_words

    first = generation.prompt_len
    whole = [(start - first, end - first) for start, end in (target.tokens for target in targets)]
    return said_words(generation, targets) or whole


def _word(generation: Generation, tokens: Unit) -> Text:
    first = generation.prompt_len
    return Text(_named("".join(generation.texts[first + tokens[0] : first + tokens[1]])))


def _named(text: str) -> str:
    return quoted(trimmed(text), WIDEST)


def _width(generation: Generation, words: Sequence[Unit]) -> int:
    return max((cell_len(_word(generation, tokens).plain) for tokens in words[:MOST_WORDS]), default=0)


def _padded(text: Text, width: int) -> Text:
    text.pad_right(width - cell_len(text.plain))
    return text


def _more(words: Sequence[object]) -> Iterator[Text]:
    if (more := len(words) - MOST_WORDS) > 0:
        yield Text(f"  and {more} more words: see the report")


def _removed(generation: Generation, targets: Sequence[Target], replay: Replay, effects: Effects, tokens: Unit) -> Text:
    """The first sources of a run of tokens by removal, with its probability with and without each, or a mean ratio."""
    from llmxai.report.visible import times
    from llmxai.store.document import falls_of
    from llmxai.types import rows_in

    rows = rows_in(targets, generation.prompt_len, tokens)
    contrast = generation.foil is not None and generation.foil.t in range(*tokens)
    logprob = sum(replay.logprobs[slice(*tokens)])
    parts = []
    for fall in falls_of(generation, effects, rows)[:MOST_SOURCES]:
        named = _named(fall.text) + (f" ({fall.mentions} mentions)" if fall.mentions > 1 else "")
        change = f" {-fall.nats:+.2f} nats"
        if fall.averaged and not contrast:
            change = f" {times(-fall.nats)}"
        elif not contrast:
            change = f" {_percent(logprob)} -> {_percent(logprob - fall.nats)}"
        parts.append(Text.assemble((named, STRONG if fall.nats > math.log(2) else SOURCE), change))
    if not parts:
        return Text("nothing taken away lowers it", "dim")
    return Text.assemble("without ", Text(", ").join(parts))


def _percent(logprob: float) -> str:
    value = 100 * math.exp(min(logprob, 0))
    return f"{value:.0f}%" if value >= 9.5 else f"{value:.2g}%" if value >= 0.01 else "under 0.01%"
