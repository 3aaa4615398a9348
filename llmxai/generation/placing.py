"""A chat through its template: whose every character of the rendered text is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from llmxai.errors import PromptError
from llmxai.generation.chat import (
    CALL_KEYS,
    MESSAGE_ROLES,
    REASONING_KEYS,
    STRUCTURE_KEYS,
    ChatInputs,
    Message,
    name_of,
    require_messages,
)
from llmxai.generation.template import Leaf, Located, Path, Place, leaves_of, rendered, runs_of, spellings, thoughts_in
from llmxai.types import Part, Role


@dataclass(frozen=True)
class _Segment:
    """Characters [start, end) of a leaf: whose they are, and where they begin in a part's text (part -1: in none)."""

    start: int
    end: int
    role: Role
    part: int = -1
    offset: int = 0


@dataclass(frozen=True)
class _Piece:
    leaf: Leaf
    segments: tuple[_Segment, ...]


@dataclass(frozen=True)
class Chat:
    """A rendered chat: its text, whose its characters are, and its parts, as yet without tokens."""

    text: str
    places: tuple[Place, ...]
    parts: tuple[Part, ...]
    thinks: str
    notes: tuple[str, ...]


class _Drawer:
    """Collects the parts of a chat, and the pieces of text that its template may show."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.pieces: list[_Piece] = []

    def part(self, kind: str, source: int, title: str, text: str) -> int:
        self.parts.append(Part(kind, source, title, text, 0, 0, ()))
        return len(self.parts) - 1

    def text(self, path: Path, text: str, segments: Sequence[_Segment]) -> None:
        self.pieces.append(_Piece(Leaf(path, text), tuple(segments)))

    def leaf(self, leaf: Leaf, role: Role, part: int = -1, offset: int = 0) -> None:
        self.pieces.append(_Piece(leaf, (_Segment(0, len(leaf.text), role, part, offset),)))


def chat_of(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], chat: ChatInputs, *, name: str) -> Chat:
    """The chat through the model's own template, with the place of all that was given.

    Raises PromptError for what `require_messages` refuses, for a template that rejects the chat, that has no place for
    its documents, tools or calls, or that shows a text in a way that cannot be located.
    """
    require_messages(messages, continues=chat.continue_final_message)
    if not getattr(tokenizer, "chat_template", None):
        raise PromptError(
            f"{name} has no chat template, so messages cannot be turned into its prompt. Give the whole "
            f"prompt as text instead (--prompt), or use an instruction-tuned model."
        )
    template = _template_of(tokenizer, chat, name=name)
    _require_taken(template, chat, name=name)
    in_template = bool(chat.documents) and takes(template, "documents") and chat.documents_in != "user"
    notes = [] if in_template or not chat.documents else [_note_on_documents(chat, name)]
    plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
    options = {
        "add_generation_prompt": not chat.continue_final_message,
        "continue_final_message": chat.continue_final_message,
        **chat.chat_template_kwargs,
    }
    rest = {"tools": [dict(each) for each in chat.tools]} if chat.tools else {}
    rest |= {"documents": [dict(each) for each in chat.documents]} if in_template else {}
    forms = [plain]
    if any(isinstance(message.get("content"), list | tuple) for message in plain):
        forms.append([_joined_parts(message) for message in plain])
    for number, form in enumerate(forms, start=1):
        given, drawn = _drawn(form, chat, in_template=in_template)
        inputs = {"messages": given, **rest}
        try:
            found = rendered(tokenizer, inputs, [p.leaf for p in drawn.pieces], options=options, name=name)
        except PromptError as error:
            if number < len(forms):
                continue
            if in_template:
                raise PromptError(f"{error} {WITHOUT_TEMPLATE}") from error
            raise
        if not any(_is_printed_data(message, found.text) for message in given):
            break
    else:
        raise PromptError(
            f"The chat template of {name} knows content only as text, and prints other content as Python would. Give "
            f"the content of every message as text."
        )
    _require_shown(drawn, found, name=name)
    notes += _notes_on_turns(drawn, found, name=name)
    return _placed(inputs, drawn, found, chat, notes)


def _template_of(tokenizer: PreTrainedTokenizerBase, chat: ChatInputs, *, name: str) -> str:
    try:
        return str(tokenizer.get_chat_template(None, tools=list(chat.tools) or None))
    except ValueError as error:
        raise PromptError(f"The chat template of {name} cannot be used: {' '.join(str(error).split())}") from error


def takes(template: str, variable: str) -> bool:
    """Whether a template's text has the name of a variable."""
    return re.search(rf"\b{re.escape(variable)}\b", template) is not None


def _require_taken(template: str, chat: ChatInputs, *, name: str) -> None:
    if chat.documents and chat.documents_in == "template" and not takes(template, "documents"):
        raise PromptError(f"The chat template of {name} takes no documents: they would be left out. {WITHOUT_TEMPLATE}")
    if chat.tools and not takes(template, "tools"):
        raise PromptError(
            f"The chat template of {name} takes no tools: they would be left out. Describe them in a system message, "
            f"or use a model whose template has tools."
        )
    for variable in chat.chat_template_kwargs:
        if not takes(template, variable):
            raise PromptError(
                f"The chat template of {name} does not read {variable!r}, so it would change nothing. Leave it out of "
                f"chat_template_kwargs (--template-arg)."
            )


def _note_on_documents(chat: ChatInputs, name: str) -> str:
    why = "" if chat.documents_in == "user" else f"The chat template of {name} takes no documents. "
    return why + DOCUMENTS_STAND.format("the text of the user's last message")


WITHOUT_TEMPLATE = (
    "With documents_in='user' (--documents-in user) the documents stand before the text of the user's last message."
)
DOCUMENTS_STAND = "The documents stand before {}, each as 'Document N: title' and, on the next line, its text."


def _joined_parts(message: dict[str, Any]) -> dict[str, Any]:
    """With its text parts as one text, a line each, for templates that know only text."""
    content = message.get("content")
    if not isinstance(content, list | tuple) or not all("text" in part for part in content):
        return message
    return {**message, "content": "\n".join(part["text"] for part in content)}


def _is_printed_data(message: Message, text: str) -> bool:
    """Whether the template printed a list or mapping as Python does."""
    content = message.get("content")
    return bool(content) and isinstance(content, list | tuple | Mapping) and str(content) in text


def _drawn(
    messages: Sequence[dict[str, Any]], chat: ChatInputs, *, in_template: bool
) -> tuple[list[dict[str, Any]], _Drawer]:
    """The messages as the template gets them, and all that it may show."""
    drawer, given = _Drawer(), list(messages)
    documents = [
        drawer.part("document", number, title, document["text"])
        for number, (document, title) in enumerate(zip(chat.documents, titles_of(chat), strict=True))
    ]
    host = None
    if documents and not in_template:
        host = next((i for i in reversed(range(len(given))) if MESSAGE_ROLES[given[i]["role"]] == Role.USER), None)
        if host is None:
            raise PromptError("There is no user message that the documents could stand in. Add one.")
    for index, message in enumerate(messages):
        before = documents_text(chat.documents, documents) if index == host else ("", ())
        given[index] = _draw_message(drawer, message, index, before)
    for number, document in enumerate(chat.documents if in_template else ()):
        for leaf in leaves_of(document, ("documents", number)):
            own = leaf.path == ("documents", number, "text")
            drawer.leaf(leaf, Role.DOCUMENT, documents[number] if own else -1)
    for number, tool in enumerate(chat.tools):
        _draw_data(drawer, tool, ("tools", number), Role.TOOL, drawer.part("tool", number, name_of(tool), _json(tool)))
    return given, drawer


def titles_of(chat: ChatInputs) -> list[str]:
    """The titles of the documents; a second one of the same title gets a number behind it."""
    titles: list[str] = []
    for number, document in enumerate(chat.documents, start=1):
        own = title = document.get("title") or f"Document {number}"
        again = 2
        while title in titles:
            title, again = f"{own} ({again})", again + 1
        titles.append(title)
    return titles


def documents_text(documents: Sequence[Mapping[str, Any]], parts: Sequence[int]) -> tuple[str, tuple[_Segment, ...]]:
    """The documents as they stand before a question, and whose each character is."""
    text, segments = "", list[_Segment]()
    for number, (document, part) in enumerate(zip(documents, parts, strict=True), start=1):
        text += f"Document {number}"
        if title := document.get("title"):
            segments.append(_Segment(len(text) + 2, len(text) + 2 + len(title), Role.DOCUMENT))
            text += f": {title}"
        text += "\n"
        segments.append(_Segment(len(text), len(text) + len(document["text"]), Role.DOCUMENT, part))
        text += f"{document['text']}\n\n"
    return text, tuple(segments)


def _draw_message(
    drawer: _Drawer, message: dict[str, Any], index: int, before: tuple[str, Sequence[_Segment]]
) -> dict[str, Any]:
    """All that a message may show; returned with the text that is to stand before its own."""
    role, title, path = MESSAGE_ROLES[message["role"]], message["role"], ("messages", index)
    content = message.get("content")
    texts = [content] if isinstance(content, str) else _part_texts(content)
    part = drawer.part("turn", index, title, "".join(texts) if content is None or texts else _json(content))
    offset = 0
    for number, text in enumerate(texts):
        place: Path = (*path, "content") if isinstance(content, str) else (*path, "content", number, "text")
        extra, segments = before if number == 0 else ("", ())
        own = _segments(text, role, part, offset, shift=len(extra))
        if extra + text:
            drawer.text(place, extra + text, (*segments, *own))
        offset += len(text)
    if content is not None and not texts:
        _draw_data(drawer, content, (*path, "content"), role, part)
    for key, value in message.items():
        if key in REASONING_KEYS and isinstance(value, str) and value:
            drawer.leaf(Leaf((*path, key), value), Role.THINKING, drawer.part("thinking", index, title, value))
        elif key in CALL_KEYS:
            for number, call in enumerate(value if key == "tool_calls" else [value]):
                _draw_call(drawer, call, (*path, key, number) if key == "tool_calls" else (*path, key), index)
        elif key != "content" and key not in STRUCTURE_KEYS:
            for leaf in leaves_of(value, (*path, key), skip=STRUCTURE_KEYS):
                drawer.leaf(leaf, role)
    if not before[0]:
        return message
    if isinstance(content, str):
        return {**message, "content": before[0] + content}
    assert content  # checked: a user's turn has text
    return {**message, "content": [{**content[0], "text": before[0] + content[0]["text"]}, *content[1:]]}


def _part_texts(content: Any) -> list[str]:
    """The texts of a list of text parts; none for other content."""
    if not isinstance(content, list | tuple) or not all(isinstance(part.get("text"), str) for part in content):
        return []
    return [part["text"] for part in content]


def _segments(text: str, role: Role, part: int, offset: int, *, shift: int) -> Iterator[_Segment]:
    """A turn's own text; in an assistant's, text between think tags is reasoning."""
    at = 0
    for start, end in thoughts_in(text, whole=True).spans if role == Role.CONTEXT else ():
        yield _Segment(shift + at, shift + start, role, part, offset + at)
        yield _Segment(shift + start, shift + end, Role.THINKING, part, offset + start)
        at = end
    yield _Segment(shift + at, shift + len(text), role, part, offset + at)


def _draw_call(drawer: _Drawer, call: Any, path: Path, index: int) -> None:
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"]:
        raise PromptError(
            f'Message {index} calls {call!r}; expected {{"function": {{"name": ..., "arguments": ...}}}}.'
        )
    path = (*path, "function") if inner is not call else path
    arguments = inner.get("arguments")
    said = arguments if isinstance(arguments, str) else _json({} if arguments is None else arguments)
    part = drawer.part("call", index, inner["name"], said)
    drawer.leaf(Leaf((*path, "name"), inner["name"]), Role.CONTEXT, -1)
    if isinstance(arguments, str):
        drawer.leaf(Leaf((*path, "arguments"), arguments), Role.CONTEXT, part)
    elif arguments is not None:
        _draw_data(drawer, arguments, (*path, "arguments"), Role.CONTEXT, part)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _draw_data(drawer: _Drawer, value: Any, path: Path, role: Role, part: int) -> None:
    """Every text and number in a JSON value, with its place in the part's text, which is the value as JSON."""
    for leaf in leaves_of(value, path):
        local = runs_of(
            replace(leaf, path=("of", *leaf.path[len(path) :])), _json(value), {"of": value}, lambda v: _json(v["of"])
        )
        if local:
            drawer.leaf(leaf, role, part, local[0][0])
        else:
            drawer.leaf(leaf, role)


def _runs_by_piece(drawn: _Drawer, found: Located) -> Iterator[tuple[_Piece, Any]]:
    return iter(zip(drawn.pieces, found.runs, strict=True))


def _require_shown(drawn: _Drawer, found: Located, *, name: str) -> None:
    """Raise PromptError for a text that cannot be located, and for a document, tool or call that is left out."""
    shown = set[int]()
    named = set[Path]()
    for piece, runs in _runs_by_piece(drawn, found):
        parts = {segment.part for segment in piece.segments} - {-1}
        kinds = {drawn.parts[part].kind for part in parts}
        if (
            runs is None
            and piece.leaf.text.strip()
            and piece.leaf.kind == "text"
            and kinds & {"turn", "document", "thinking"}
        ):
            raise PromptError(
                f"The chat template of {name} shows {_said(piece.leaf.path)} in a way that cannot be located: the "
                f"template's own text changes with it. Give the whole prompt as text instead (--prompt)."
            )
        if runs:
            shown |= parts
            named.add(piece.leaf.path[:4] if piece.leaf.path[0] == "messages" else piece.leaf.path[:2])
    turns = {number for number, part in enumerate(drawn.parts) if part.kind == "turn" and part.text.strip()}
    if found.text and turns and not turns & shown:
        raise PromptError(f"The chat template of {name} leaves out the text of all messages. Give the prompt as text.")
    for piece in drawn.pieces:
        path = piece.leaf.path
        if path[0] == "tools" and path[:2] not in named:
            raise PromptError(
                f"The chat template of {name} leaves out tool {int(path[1]) + 1}. Describe it in a message."
            )
        if path[0] == "messages" and path[2] in CALL_KEYS and path[:4] not in named:
            raise PromptError(
                f"The chat template of {name} leaves out what message {path[1]} calls ({piece.leaf.text!r}). Put the "
                f"call into the message's content as text, or use a model whose template has tool calls."
            )
    for number, part in enumerate(drawn.parts):
        if part.kind == "document" and number not in shown:
            raise PromptError(
                f"The chat template of {name} leaves out document {part.source + 1} ({part.title!r}). "
                f"{WITHOUT_TEMPLATE}"
            )


def _said(path: Path) -> str:
    """A path in words: `message 2`."""
    what = str(path[0]).removesuffix("s")
    return f"document {int(path[1]) + 1}" if what == "document" else f"{what} {path[1]}"


def _notes_on_turns(drawn: _Drawer, found: Located, *, name: str) -> Iterator[str]:
    """Turns whose text the template leaves out."""
    left_out = dict[int, bool]()
    for piece, runs in _runs_by_piece(drawn, found):
        for number in {segment.part for segment in piece.segments} - {-1}:
            left_out[number] = left_out.get(number, True) and runs == () and bool(piece.leaf.text.strip())
    for number, gone in left_out.items():
        part = drawn.parts[number]
        if gone and part.kind == "turn":
            yield f"The chat template of {name} leaves out the text of message {part.source} ({part.title})."


def _placed(inputs: Mapping[str, Any], drawn: _Drawer, found: Located, chat: ChatInputs, notes: Sequence[str]) -> Chat:
    """Whose every character is, from the runs of all leaves."""
    places, parts = list[Place](), list(drawn.parts)
    whole = _whole_data(inputs, drawn, found)
    for number, (text, at) in whole.items():
        role = Role.TOOL if parts[number].kind in ("tool", "turn") else Role.CONTEXT
        parts[number] = replace(parts[number], text=text)
        places += [Place(start, start + len(text), role, number, 0, len(text)) for start in at]
    covered = [(place.start, place.end) for place in places]
    final = len(inputs["messages"]) - 1 if chat.continue_final_message else -1
    tail = 0
    for piece, runs in _runs_by_piece(drawn, found):
        for run in runs or ():
            if piece.leaf.path[:3] != ("messages", final, "content"):
                tail = max(tail, run[1])
            if not any(start <= run[0] and run[1] <= end for start, end in covered):
                places += _places_of(run, piece.segments)
    thoughts = thoughts_in(found.text[tail:])
    inside = [(tail + start, tail + end) for start, end in thoughts.spans]
    places = [
        replace(place, role=Role.THINKING)
        if place.role == Role.CONTEXT and any(start <= place.start and place.end <= end for start, end in inside)
        else place
        for place in places
    ]
    places.sort(key=lambda place: (place.start, place.end))
    return Chat(found.text, tuple(places), tuple(parts), thoughts.left_open, tuple(notes))


def _places_of(run: tuple[int, int, int, int], segments: Sequence[_Segment]) -> Iterator[Place]:
    whole = Place(run[0], run[1], Role.TEMPLATE, -1, run[2], run[3])
    back = Place(run[2], run[3], Role.TEMPLATE, -1, run[0], run[1])
    for segment in segments:
        low, high = max(run[2], segment.start), min(run[3], segment.end)
        if low >= high:
            continue
        start, end = (whole.start, whole.end) if (low, high) == (run[2], run[3]) else back.carried(low, high)
        yield Place(
            *(start, end, segment.role, segment.part),
            *(segment.offset + low - segment.start, segment.offset + high - segment.start),
        )


def _whole_data(inputs: Mapping[str, Any], drawn: _Drawer, found: Located) -> dict[int, tuple[str, list[int]]]:
    """Tools and arguments that the template shows as one JSON value: the part's number, that text, and its places."""
    runs = dict[int, list[tuple[int, int]]]()
    values = dict[int, Any]()
    for piece, known in _runs_by_piece(drawn, found):
        part = piece.segments[0].part
        if part < 0 or not known:
            continue
        value, depth = _data_of(inputs, piece.leaf.path)
        if depth:
            values[part] = value
            runs.setdefault(part, []).extend((start, end) for start, end, *_ in known)
    whole = dict[int, tuple[str, list[int]]]()
    for part, value in values.items():
        for text in spellings(value):
            places = [match.start() for match in re.finditer(re.escape(text), found.text)]
            held = [at for at in places if any(at <= a and b <= at + len(text) for a, b in runs[part])]
            if held:
                whole[part] = (text, held)
                break
    return whole


def _data_of(inputs: Mapping[str, Any], path: Path) -> tuple[Any, int]:
    """The JSON value that a leaf is part of (a tool, arguments, a tool's result), and the length of its path; or 0."""
    depth = 2 if path[0] == "tools" else path.index("arguments") + 1 if "arguments" in path else 0
    value: Any = inputs
    for key in path[:depth]:
        value = value[key]
    return value, depth if isinstance(value, Mapping | list) else 0
