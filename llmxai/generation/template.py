"""Where the texts of a chat stand in what its template renders.

One text at a time is replaced by marks, one for each of its characters, and the template is rendered again. If only the
marks differ from the real rendering, they say which character of the text is where, whatever the template trims,
cuts, strips, repeats or moves. Where the template reads the text itself (it looks for think tags, say), fewer and fewer
characters are replaced. Nothing is looked for in the template's own text, and nothing depends on the model's name.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import accumulate, islice, pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from llmxai.errors import PromptError
from llmxai.text import TooMuchError, bounded
from llmxai.types import Part, Role

Path = tuple[str | int, ...]
"""Keys and indices that lead to a value in {messages, documents, tools}."""
Run = tuple[int, int, int, int]
"""Characters [0, 1) of the rendering show characters [2, 3) of the text; one by one where both are equally many."""
Inputs = Mapping[str, Any]
"""`messages`, and where there are some `documents` and `tools`."""


@dataclass(frozen=True)
class Leaf:
    """A text that was given, and its place in the inputs of the template."""

    path: Path
    text: str
    kind: str = "text"
    """`text`, `key` (of a mapping, at `path`) or `value` (a number or a truth value)."""


@dataclass(frozen=True)
class Located:
    """The rendering, and for every leaf its runs there: none if the template leaves it out, None if unknown."""

    text: str
    runs: tuple[tuple[Run, ...] | None, ...]


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    inputs: Inputs,
    leaves: Sequence[Leaf] = (),
    *,
    options: Mapping[str, Any],
    name: str,
) -> Located:
    """The chat as its template renders it, with the place of every leaf.

    `options` go to the template. Raises PromptError if the template rejects the chat, fails, or does not end.
    """

    def work() -> dict[str, Any]:
        _stop_clock()  # of this process, which ends after the work

        def render(given: Inputs) -> str:
            rest = {key: value for key, value in given.items() if key != "messages"}
            return str(tokenizer.apply_chat_template(given["messages"], tokenize=False, **rest, **options))

        text = render(inputs)
        return {"text": text, "runs": [runs_of(leaf, text, inputs, render) for leaf in leaves]}

    try:  # the template is the model's, and may never end
        found = bounded(work)
    except TooMuchError as error:
        raise PromptError(f"The chat template of {name} cannot be used: {error}.") from error
    except ValueError as error:
        said = " ".join(str(error).split())
        raise PromptError(f"The chat template of {name} rejects these messages: {said}") from error
    runs = (None if each is None else tuple((a, b, s, e) for a, b, s, e in each) for each in found["runs"])
    return Located(found["text"], tuple(runs))


def _stop_clock() -> None:
    """Templates that print the time print the same in every rendering."""
    now = datetime.now()

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Stopped:
            return cls.fromtimestamp(now.timestamp(), tz)

    chat_template_utils.datetime = Stopped


ALPHABETS = ((0x20000, 0x2A6D0), (0x30000, 0x31340), (0x17000, 0x187F0), (0xAC00, 0xD7A0))
"""Rare letters, printed as they are by JSON, Python and Jinja, without upper case and white space."""
TAG = r"<[^<>\n]*>|\[/?[A-Z_]+\]|◁[^◁▷\n]*▷"
NOWHERE, OUTSIDE, TRIMMED = range(3)
WORDLESS = r"[\W_]+"
EVERYTHING = r"[\s\S]+"
KEPT = (
    *(("(?!)", NOWHERE), (r"\s+", OUTSIDE), (r"\A\s+", NOWHERE), (r"\s+\Z", NOWHERE)),
    *((r"\A\s+|\s+\Z", NOWHERE), (r"\s+", TRIMMED), (r"\s+", NOWHERE)),
    *((WORDLESS, OUTSIDE), (WORDLESS, TRIMMED), (EVERYTHING, OUTSIDE), (EVERYTHING, TRIMMED)),
    *((rf"{TAG}|\s+", NOWHERE), (rf"{TAG}|{WORDLESS}", TRIMMED), (rf"{TAG}|{WORDLESS}", NOWHERE)),
)
"""What of a text is not replaced by marks, and where more marks are put: nowhere, around the text, or around the text
without the white space at its ends. Tried in this order."""


def runs_of(leaf: Leaf, text: str, inputs: Inputs, render: Callable[[Inputs], str]) -> list[Run] | None:
    """The runs of one leaf in the rendering `text` of `inputs`: none if it is not there, None if that is unknown."""

    def again(value: Any) -> str | None:
        try:
            return render(_put(inputs, leaf, value))
        except Exception:  # the template's own, for which the changed text is no good
            return None

    if leaf.kind == "value":
        return _runs_of_value(leaf.text, text, again)
    alphabet = _Alphabet.unused_in(text + leaf.text)
    if alphabet is None:
        return None
    full = alphabet.spelt(len(leaf.text))
    trimmed = len(leaf.text) - len(leaf.text.lstrip()), len(leaf.text.rstrip())
    for kept, around in KEPT:
        first, last = trimmed if around == TRIMMED and leaf.text.strip() else (0, len(leaf.text))
        marked = "".join(leaf.text[a:b] if as_is else full[a:b] for a, b, as_is in _split(re.compile(kept), leaf.text))
        shown = marked
        if around != NOWHERE:
            shown = f"{marked[:first]}{OPEN}{marked[first:last]}{CLOSE}{marked[last:]}"
        if (got := again(shown)) is not None:
            found = _compared(got, text, alphabet=alphabet, full=full, ends=(first, last))
            if found or (found is not None and marked.strip() != leaf.text.strip()):
                return found
    return _runs_in_hole(again(full), leaf.text, text, alphabet)


OPEN, CLOSE = "8104923756027", "8104923756128"
"""Marks of the ends: digits, which no template changes."""
ENDS = re.compile(f"{OPEN}|{CLOSE}")


@dataclass(frozen=True)
class _Alphabet:
    start: int
    end: int

    @classmethod
    def unused_in(cls, text: str) -> _Alphabet | None:
        for start, end in ALPHABETS:
            if not re.search(f"[{chr(start)}-{chr(end)}]", text) and not ENDS.search(text):
                return cls(start, end)
        return None

    @property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(f"[{chr(self.start)}-{chr(self.end)}]+")

    def spelt(self, n: int) -> str:
        """The marks of characters 0 to n."""
        return "".join(chr(self.start + i % (self.end - self.start)) for i in range(n))


def _split(pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, int, bool]]:
    """The text in pieces, each with whether it matches."""
    at = 0
    for match in pattern.finditer(text):
        yield at, match.start(), False
        yield match.start(), match.end(), True
        at = match.end()
    yield at, len(text), False


def _compared(got: str, text: str, *, alphabet: _Alphabet, full: str, ends: tuple[int, int]) -> list[Run] | None:
    """The runs of the marks; None if anything else differs from the real rendering."""
    plain, known = _without_ends(got, ends)
    if len(plain) != len(text):
        return None
    at = 0
    for match in alphabet.pattern.finditer(plain):
        if plain[at : match.start()] != text[at : match.start()]:
            return None
        known += _spelt_runs(match.group(), match.start(), full, alphabet)
        at = match.end()
    if plain[at:] != text[at:]:
        return None
    return _joined(sorted(known))


def _without_ends(got: str, ends: tuple[int, int]) -> tuple[str, list[Run]]:
    """The rendering without marks of ends, and their places as empty runs."""
    pieces, places, at, length = list[str](), list[Run](), 0, 0
    for match in ENDS.finditer(got):
        pieces.append(got[at : match.start()])
        length += match.start() - at
        place = ends[match.group() == CLOSE]
        places.append((length, length, place, place))
        at = match.end()
    return "".join([*pieces, got[at:]]), places


def _spelt_runs(marks: str, at: int, full: str, alphabet: _Alphabet) -> list[Run]:
    """Which characters of the text neighbouring marks stand for."""
    size, runs, i = alphabet.end - alphabet.start, list[Run](), 0
    after = 0
    while i < len(marks):
        place = ord(marks[i]) - alphabet.start
        place += size * max(0, -(-(after - place) // size)) if len(full) > size else 0
        n = 1
        if marks[i:] == full[place : place + len(marks) - i]:
            n = len(marks) - i
        else:
            while i + n < len(marks) and marks[i + n] == full[place + n : place + n + 1]:
                n += 1
        runs.append((at + i, at + i + n, place, place + n))
        after, i = place + n, i + n
    return runs


def _joined(known: Sequence[Run]) -> list[Run]:
    """The runs with what lies between them, where both the rendering and the text have something there."""
    runs = [*known[:1]]
    for before, after in pairwise(known):
        if before[3] < after[2] and before[1] < after[0]:
            runs.append((before[1], after[0], before[3], after[2]))
        runs.append(after)
    joined: list[Run] = []
    for run in runs:
        if run[0] == run[1]:
            continue
        last = joined[-1] if joined else None
        if last is not None and (last[1], last[3]) == (run[0], run[2]) and _alike(last) and _alike(run):
            joined[-1] = (last[0], run[1], last[2], run[3])
        else:
            joined.append(run)
    return joined


def _alike(run: Run) -> bool:
    return run[1] - run[0] == run[3] - run[2]


def _runs_in_hole(got: str | None, leaf: str, text: str, alphabet: _Alphabet) -> list[Run] | None:
    """Where the template's own text changes with the leaf's: the leaf between what stays the same on both sides."""
    places = [] if got is None else [match.span() for match in alphabet.pattern.finditer(got)]
    if got is None or not places:
        return None
    head, tail = got[: places[0][0]], got[places[-1][1] :]
    shown = leaf.strip()
    if not shown or len(head) + len(tail) > len(text) or not (text.startswith(head) and text.endswith(tail)):
        return None
    hole = text[len(head) : len(text) - len(tail)]
    if hole.count(shown) != 1:
        return None
    at, first = len(head) + hole.index(shown), leaf.index(shown)
    return [(at, at + len(shown), first, first + len(shown))]


def _runs_of_value(leaf: str, text: str, again: Callable[[Any], str | None]) -> list[Run] | None:
    """Of a number or a truth value: what changes with another of the same kind in its place."""
    value = json.loads(leaf)
    other = (
        not value
        if isinstance(value, bool)
        else json.loads(re.sub(r"\d", lambda d: str((int(d[0]) + 4) % 9 + 1), leaf))
    )
    got = again(other)
    if got is None or got == text:
        return None if got is None else []
    head = next((i for i, (a, b) in enumerate(zip(got, text, strict=False)) if a != b), min(len(got), len(text)))
    tail = next((i for i, (a, b) in enumerate(zip(got[::-1], text[::-1], strict=False)) if a != b), 0)
    for form in dict.fromkeys((leaf, str(value))):
        for start in range(max(0, len(text) - tail - len(form)), head + 1):
            if text.startswith(form, start):
                return [(start, start + len(form), 0, len(leaf))]
    return None


def _put(inputs: Any, leaf: Leaf, value: Any, path: Path | None = None) -> Any:
    """A copy of the inputs with another value, or another key, at the leaf's path."""
    path = leaf.path if path is None else path
    head, rest = path[0], path[1:]
    if isinstance(inputs, Mapping):
        if not rest and leaf.kind == "key":
            return {value if key == head else key: each for key, each in inputs.items()}
        return {
            key: (_put(each, leaf, value, rest) if rest else value) if key == head else each
            for key, each in inputs.items()
        }
    return [(_put(each, leaf, value, rest) if rest else value) if i == head else each for i, each in enumerate(inputs)]


def leaves_of(value: Any, path: Path = (), *, skip: frozenset[str] = frozenset()) -> Iterator[Leaf]:
    """The texts, numbers and truth values in a JSON value, and the names that its writer chose for arguments."""
    if isinstance(value, Mapping):
        named = path[-1:] == ("properties",) or "arguments" in path
        for key, each in value.items():
            if named and key:
                yield Leaf((*path, key), key, "key")
            if key not in skip:
                yield from leaves_of(each, (*path, key), skip=skip)
    elif isinstance(value, list | tuple):
        for i, each in enumerate(value):
            yield from leaves_of(each, (*path, i), skip=skip)
    elif isinstance(value, str) and value:
        yield Leaf(path, value)
    elif isinstance(value, bool | int | float):
        yield Leaf(path, json.dumps(value), "value")


def spellings(value: Any) -> Iterator[str]:
    """The usual ways to write a value as JSON."""
    for ordered in (False, True):
        for indent in (None, 4, 2):
            yield json.dumps(value, ensure_ascii=False, indent=indent, sort_keys=ordered)
        yield json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=ordered)


THOUGHTS = (
    *(("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<thought>", "</thought>")),
    *(
        ("<reasoning>", "</reasoning>"),
        ("[THINK]", "[/THINK]"),
        ("◁think▷", "◁/think▷"),
        ("<seed:think>", "</seed:think>"),
    ),
    *(("<|START_THINKING|>", "<|END_THINKING|>"), ("<|channel>thought", "<channel|>")),
    ("<|channel|>analysis<|message|>", "<|end|>"),
)
"""Marks around the model's reasoning, of the families that have them."""


@dataclass(frozen=True)
class Thoughts:
    """Where a text is reasoning, its marks included."""

    spans: tuple[tuple[int, int], ...]
    left_open: str = ""
    """The mark that would end the last span, if the text does not."""


def thoughts_in(text: str, *, opened: str = "", whole: bool = False) -> Thoughts:
    """The reasoning in a text; `opened`: the closing mark of reasoning that begins before it.

    In a `whole` answer, a closing mark without an opening one ends reasoning that began before it.
    """
    if whole and not opened:
        opened = _closed_first(text)
    spans, at, closing = list[tuple[int, int]](), 0, opened
    while True:
        if not closing:
            openings = [(text.find(first, at), first, last) for first, last in THOUGHTS]
            known = [found for found in openings if found[0] >= 0]
            if not known:
                return Thoughts(tuple(spans))
            start, _, closing = min(known, key=lambda found: found[0])
        else:
            start = at
        end = text.find(closing, start)
        if end < 0:
            return Thoughts((*spans, (start, len(text))), closing)
        at = end + len(closing)
        spans.append((start, at))
        closing = ""


def _closed_first(text: str) -> str:
    """The closing mark that comes before any opening one; only of marks that nothing else is written with."""
    for first, last in THOUGHTS:
        end = text.find(last) if "/" in last else -1
        if end >= 0 and not 0 <= text.find(first) < end:
            return last
    return ""


@dataclass(frozen=True)
class Place:
    """Characters [start, end) of the rendered prompt: the role, and the characters [low, high) of a part's text."""

    start: int
    end: int
    role: Role
    part: int = -1
    low: int = 0
    high: int = 0

    def carried(self, start: int, end: int) -> tuple[int, int]:
        """What the characters [start, end) of the prompt, inside this place, carry of the part's text."""
        shown, own = self.end - self.start, self.high - self.low
        if shown == own:
            return self.low + start - self.start, self.low + end - self.start
        low = self.low + (start - self.start) * own // shown
        return low, max(low + 1, self.low - (-(end - self.start) * own // shown))


def roles_and_parts(
    offsets: Sequence[tuple[int, int]], places: Sequence[Place], parts: Sequence[Part]
) -> tuple[list[Role], tuple[Part, ...]]:
    """The role of every token (of most of its characters; content wins a tie), and the parts with their tokens.

    `offsets`: the characters of the prompt that each token covers; `places` are sorted.
    """
    ends = list(accumulate((place.end for place in places), max))
    roles, spans = list[Role](), [list[tuple[int, int, int]]() for _ in parts]
    for token, (start, end) in enumerate(offsets):
        inside: dict[Role, int] = {}
        for place in islice(places, bisect_right(ends, start), None):
            if place.start >= end:
                break
            low, high = max(start, place.start), min(end, place.end)
            if low >= high:
                continue
            inside[place.role] = inside.get(place.role, 0) + high - low
            if place.part >= 0:
                spans[place.part].append((token, *place.carried(low, high)))
        total = sum(count for role, count in inside.items() if role != Role.TEMPLATE)
        best = max(inside, key=lambda role: inside[role], default=Role.TEMPLATE)
        roles.append(best if total and 2 * total >= end - start else Role.TEMPLATE)
    return roles, tuple(
        replace(part, first=own[0][0], last=own[-1][0] + 1, spans=tuple(own)) if own else part
        for part, own in zip(parts, spans, strict=True)
    )
