"""Words and sentences from tokens, only for units and display; ids never come from here. And texts of others, which may
have been made to harm: templates that never end, cells that a spreadsheet runs. Needs no torch.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
import unicodedata
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

from llmxai.names import Role, Unit

JOINING = frozenset("'’-_")
JOINER = "\u200d"
"""Zero-width joiner: the characters on its two sides form one sign."""
SPACED_ENDS = ".!?"
"""Marks that end a sentence where a space follows."""
UNSPACED_ENDS = "…。！？؟।"
"""Marks that end one whatever follows."""
CLOSING = "\"'’”»)]）」』】"
NO_END, END_IF_SPACED, END = range(3)
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


def group_words(texts: Sequence[str], roles: Sequence[Role]) -> tuple[Unit, ...]:
    """Half-open token ranges that cover the sequence, one per word.

    A word begins at white space, at punctuation, at a change of role, after a line break, and at every character of a
    script written without spaces; every template token is its own word. A partial character stays with the token that
    completes it.
    """
    starts = [i for i in range(len(texts)) if i == 0 or _begins_word(texts, roles, i)]
    return tuple(pairwise([*starts, len(texts)]))


def sentences(texts: Sequence[str], roles: Sequence[Role], words: Sequence[Unit]) -> list[Unit]:
    """Neighbouring words joined up to the end of a sentence, to a line break, or to a change of role.

    `.`, `!` and `?` end nothing where more of a word follows at once: they are part of a number or an address. More
    marks, closing quotes and line breaks belong to the sentence that they end. An abbreviation with a space after it
    (`Dr. Who`) ends one too. Words with a gap between them are never joined.
    """
    found: list[Unit] = []
    joins, mark = False, NO_END
    for number, (start, end) in enumerate(words):
        touches = number + 1 < len(words) and words[number + 1][0] == end and roles[end] == roles[end - 1]
        text = "".join(texts[start:end])
        following = "".join(texts[slice(*words[number + 1])]) if touches else ""
        found[len(found) - joins :] = [(found[-1][0], end) if joins else (start, end)]
        mark = max(_mark(text), mark if joins and _prolongs_end(text) else NO_END)
        spaced = text[-1:].isspace() or following[:1].isspace() or _class(following[:1]) == "unspaced"
        ended = mark == END or (mark == END_IF_SPACED and spaced)
        joins = touches and (not ended or _prolongs_end(following))
    return found


def _mark(text: str) -> int:
    """Whether a word ends a sentence, and whether only where a space follows."""
    last = text.rstrip().rstrip(CLOSING)[-1:]
    if "\n" in text or (last and last in UNSPACED_ENDS):
        return END
    return END_IF_SPACED if last and last in SPACED_ENDS else NO_END


def _prolongs_end(text: str) -> bool:
    """Whether a word that comes after the end of a sentence still belongs to it."""
    if text.isspace():
        return "\n" in text
    return all(character in SPACED_ENDS + UNSPACED_ENDS + CLOSING for character in text.rstrip())


def trimmed(text: str) -> str:
    """Without surrounding white space, unless it is nothing else."""
    return text.strip() or text


def character_units(texts: Sequence[str], *, first: int = 0) -> list[Unit]:
    """The tokens from `first` on; tokens that are part of one character are grouped."""
    found: list[Unit] = []
    start = first
    for i in range(first, len(texts)):
        if texts[i]:
            found.append((start, i + 1))
            start = i + 1
    return found


def places(texts: Sequence[str], units: Sequence[Unit], text: str) -> list[Unit]:
    """Where neighbouring units read `text`, from left to right, without overlap.

    White space at the ends of either does not count, unless `text` is nothing else.
    """
    wanted, blank, found = trimmed(text), not text.strip(), list[Unit]()
    for number, (start, _) in enumerate(units):
        if found and start < found[-1][1]:
            continue
        for _, end in units[number:]:
            said = "".join(texts[start:end])
            said = said if blank else said.strip()
            if said and said == wanted:
                found.append((start, end))
            if len(said) >= len(wanted) or not said or not wanted.startswith(said):
                break
    return found


def by_place(spans: Iterable[Sequence[int]]) -> list[tuple[int, int, int]]:
    """(start, minus the end, number) of every half-open range, in the order of the text, larger ones first."""
    return sorted((start, -end, number) for number, (start, end) in enumerate(spans))


def inside(placed: Sequence[tuple[int, int, int]], first: int, end: int) -> list[int]:
    """The numbers of the ranges (`by_place`) inside another, each as large as possible, none inside one of them."""
    found: list[int] = []
    reached = first
    for start, minus, number in placed[bisect_left(placed, (first,)) : bisect_left(placed, (end,))]:
        if start >= reached and -minus <= end:
            found.append(number)
            reached = -minus
    return found


def quoted(text: str, limit: int = 32) -> str:
    """As Python would quote it: on one line, invisible characters escaped, cut to `limit` characters."""
    full = repr(text)
    return full if len(full) <= limit else f"{full[: limit - 2]}…{full[-1]}"


def _begins_word(texts: Sequence[str], roles: Sequence[Role], i: int) -> bool:
    if roles[i] != roles[i - 1]:
        return True
    before = texts[i - 1]
    text = next((t for t in texts[i:] if t), "")
    if not before or not text:
        return False
    if roles[i] in (Role.TEMPLATE, Role.BOS):
        return True
    last, first = before[-1], text[0]
    if JOINER in (last, first):
        return False
    return last.isspace() or first.isspace() or _class(first) != _class(last) or _class(first) != "letter"


def _class(character: str) -> str:
    """`letter`, `sign`, or `unspaced` for a letter of a script without spaces; `""` for none."""
    if not character:
        return ""
    category = unicodedata.category(character)
    if character in JOINING or category[0] in "LMN":
        return "unspaced" if unicodedata.name(character, "").startswith(UNSPACED) else "letter"
    return "sign" if category[0] in "PS" else "letter"


FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""Some spreadsheets run text cells with these first characters as formulas; in CSV they get a leading apostrophe."""


def csv_cell(value: Any) -> Any:
    """A value as a cell of a CSV file that no spreadsheet runs; numbers are left alone."""
    if not isinstance(value, str):
        return value
    value = value.replace("\0", "\\x00")
    return f"'{value}" if value.lstrip(" ").startswith(FORMULA) else value


class TooMuchError(ValueError):
    """It takes more time or memory than it may."""


SECONDS = 10
"""Processor time that a template may take."""
MEMORY = 2**30
"""Bytes that it may take."""
ANSWER = 64 * 2**20
"""Bytes that it may give."""
PATIENCE = 6
"""Times as long it may take by the clock, on a machine that others use, too."""


def bounded(work: Callable[[], Any], *, seconds: int = SECONDS) -> Any:
    """What `work` returns (values of JSON), computed in a child process that can take only so much time and memory.

    Raises TooMuchError if it would take more, and ValueError with the message of any error that it raises.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks while there are threads: the child uses none
        child = os.fork()
    if child == 0:
        _answer(work, writer, seconds)
    os.close(writer)
    try:
        data = _all_of(reader, until=time.monotonic() + seconds * PATIENCE)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not data:
        raise TooMuchError(f"it takes more than {seconds} s or {MEMORY >> 20} MiB")
    answer = json.loads(data)
    if "value" in answer:
        return answer["value"]
    raise (TooMuchError if answer["too_much"] else ValueError)(answer["error"])


def _answer(work: Callable[[], Any], writer: int, seconds: int) -> None:
    """Never returns: the child ends here."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        with open("/proc/self/statm", encoding="ascii") as told:
            now = int(told.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    except (OSError, ValueError):  # this system has no such limit
        pass
    try:
        answer: dict[str, Any] = {"value": work()}
        data = json.dumps(answer).encode()
    except MemoryError:
        data = json.dumps({"error": f"it takes more than {MEMORY >> 20} MiB", "too_much": True}).encode()
    except BaseException as error:
        data = json.dumps({"error": str(error) or type(error).__name__, "too_much": False}).encode()
    try:
        while data:
            data = data[os.write(writer, data) :]
    finally:
        os._exit(0)


def _all_of(reader: int, *, until: float) -> bytes:
    """What the child wrote; nothing if it did not come to an end."""
    parts: list[bytes] = []
    while (left := until - time.monotonic()) > 0 and sum(map(len, parts)) <= ANSWER:
        if not select.select([reader], [], [], left)[0]:
            break
        if not (part := os.read(reader, 2**16)):
            return b"".join(parts)
        parts.append(part)
    return b""
