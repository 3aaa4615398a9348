"""What a chat consists of: messages, documents, tools and variables of its template. Checked without a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers.utils import get_json_schema

from llmxai.errors import OptionError, PromptError
from llmxai.settings import require_known
from llmxai.types import Role

Message = Mapping[str, Any]

MESSAGE_ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "tool": Role.TOOL,
    "function": Role.TOOL,
    "ipython": Role.TOOL,
    "assistant": Role.CONTEXT,
    "model": Role.CONTEXT,
    "context": Role.DOCUMENT,
    "document": Role.DOCUMENT,
    "documents": Role.DOCUMENT,
}
ASSISTANTS = ("assistant", "model")
STRUCTURE_KEYS = frozenset({"role", "type", "id", "tool_call_id"})
"""Fields of a message that control the template and are not shown to the model as content."""
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
CALL_KEYS = ("tool_calls", "function_call")
PLACES = ("auto", "template", "user")
DEEPEST = 32
"""Levels of lists and objects in a message, a document or a tool: records are read to a depth of 50."""
RESERVED = frozenset(
    {
        *("conversation", "messages", "tools", "documents", "chat_template", "add_generation_prompt", "tokenize"),
        *("continue_final_message", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
        *("return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens"),
    }
)
"""Names that are no variables of a template, or that have an argument of their own."""


@dataclass(frozen=True)
class ChatInputs:
    """What a chat may have besides its messages; `chat_inputs` checks it."""

    documents: tuple[Mapping[str, Any], ...] = ()
    """Each with `text` and, if it has one, `title`; other keys go to the template."""
    documents_in: str = "auto"
    """`template`: documents go to the chat template; `user`: before the text of the user's last message, or of a raw
    prompt; `auto`: to the template if it takes documents."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """JSON schemas of what the model may call."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Variables for the chat template, such as `enable_thinking`."""
    continue_final_message: bool = False
    """The answer continues the last message, which is the assistant's."""

    def request(self) -> dict[str, Any]:
        """What was given, in the words of `explain`'s arguments."""
        given = {
            "documents": [dict(each) for each in self.documents],
            "documents_in": self.documents_in if self.documents else None,
            "tools": [dict(each) for each in self.tools],
            "chat_template_kwargs": dict(self.chat_template_kwargs),
            "continue_final_message": self.continue_final_message,
        }
        return {name: value for name, value in given.items() if value}


def chat_inputs(
    *,
    documents: Sequence[Any] | None = None,
    documents_in: str = "auto",
    tools: Sequence[Any] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    continue_final_message: bool = False,
) -> ChatInputs:
    """The inputs as plain data; functions among the tools become their JSON schemas. Needs no model.

    Raises PromptError for a document without text, or a tool that has no name, and OptionError for the rest.
    """
    require_known("documents_in", documents_in, PLACES)
    for what, value in (("documents", documents), ("tools", tools)):
        if isinstance(value, str | Mapping) or not isinstance(value, Sequence | None):
            raise PromptError(f"{what} is a {type(value).__name__}; expected a list.")
    given = dict(chat_template_kwargs or {})
    if strange := [name for name in given if name in RESERVED]:
        raise OptionError(f"chat_template_kwargs: {strange[0]!r} is no variable of a template. {_instead(strange[0])}")
    _require_json("chat_template_kwargs", given)
    return ChatInputs(
        documents=tuple(_document(each, number) for number, each in enumerate(documents or (), start=1)),
        documents_in=documents_in,
        tools=tuple(_tool(each, number) for number, each in enumerate(tools or (), start=1)),
        chat_template_kwargs=given,
        continue_final_message=continue_final_message,
    )


def _instead(name: str) -> str:
    """How to get what was meant by a reserved name among the variables of a template."""
    if name in ("messages", "documents", "tools", "continue_final_message"):
        return f"It has an option of its own: --{name.replace('_', '-')}, in Python {name}=."
    if name == "chat_template":
        return "Leave it out; the template is chat_template.jinja in the model's folder, or tokenizer.chat_template."
    return "Leave it out: llmxai sets it."


def _document(document: Any, number: int) -> dict[str, Any]:
    if isinstance(document, str):
        document = {"text": document}
    if not isinstance(document, Mapping) or not isinstance(document.get("text"), str):
        raise PromptError(f"Document {number} is {document!r}; expected an object with `text` and, if any, `title`.")
    if not isinstance(document.get("title", ""), str):
        raise PromptError(f"Document {number} has the title {document['title']!r}; expected text.")
    if not document["text"].strip():
        named = f" ({document['title']!r})" if document.get("title") else ""
        raise PromptError(f"Document {number}{named} is empty. Leave it out.")
    _require_json(f"Document {number}", document)
    return dict(document)


def _tool(tool: Any, number: int) -> dict[str, Any]:
    if callable(tool):
        try:
            tool = get_json_schema(tool)
        except Exception as error:  # transformers raises its own, for missing type hints or docstrings
            raise PromptError(f"Tool {number} cannot be described: {' '.join(str(error).split())}") from error
    if not isinstance(tool, Mapping) or not name_of(tool):
        raise PromptError(
            f"Tool {number} is {tool!r}; expected a JSON schema such as "
            f'{{"type": "function", "function": {{"name": ..., "description": ..., "parameters": {{...}}}}}}.'
        )
    _require_json(f"Tool {number}", tool)
    return dict(tool)


def name_of(tool: Mapping[str, Any]) -> str:
    inner = tool.get("function")
    return str((inner if isinstance(inner, Mapping) else tool).get("name") or "")


def _require_json(what: str, value: Any) -> None:
    try:
        require_text(json.dumps(value, ensure_ascii=False), what=what)
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, PromptError):
            raise
        raise PromptError(f"{what} is no JSON value: {error}.") from error
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for each in level for inner in _inside(each)]
    if level:
        raise PromptError(f"{what} is nested more than {DEEPEST} levels deep. Flatten it, or give it as text.")


def _inside(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


def require_text(text: str, *, what: str) -> None:
    """Raise PromptError if `text` contains half of a surrogate pair, which no tokenizer can encode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{what} holds a lone surrogate (U+{ord(text[error.start]):04X} at character {error.start}). The other "
            f"half was lost, often by cutting a string. Fix or remove that character."
        ) from error


# messages


def require_messages(messages: Sequence[Message], *, continues: bool = False) -> None:
    """Raise PromptError for messages that are no chat to be answered. Needs no model."""
    if not messages:
        raise PromptError('There are no messages. Give at least one, such as {"role": "user", "content": "..."}.')
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message or not ({"content", *CALL_KEYS} & message.keys()):
            raise PromptError(f"Message {index} is {message!r}; expected an object with `role` and `content`.")
        if not isinstance(message["role"], str) or message["role"] not in MESSAGE_ROLES:
            raise PromptError(f"Message {index} has the role {message['role']!r}. Known: {', '.join(MESSAGE_ROLES)}.")
        _require_content(message, index)
        _require_json(f"Message {index}", dict(message))
    last = messages[-1]
    if continues and (last["role"] not in ASSISTANTS or not last.get("content")):
        raise PromptError(
            "continue_final_message: the last message is not the beginning of an assistant's answer. Add it, such as "
            '{"role": "assistant", "content": "The answer is"}, or leave continue_final_message out.'
        )
    if last["role"] in ASSISTANTS and not continues:
        raise PromptError(
            "The last message is the assistant's. To explain that answer, remove it from the messages and pass it as "
            "the response (--response). To let the model continue it, set continue_final_message "
            "(--continue-final-message). To generate a new one, end with a user or tool message."
        )


def _require_content(message: Message, index: int) -> None:
    """Refuse other content: a template would print a number, or the word None, as part of the conversation."""
    content = message.get("content")
    if content is None and any(message.get(key) for key in CALL_KEYS):
        return
    structured = isinstance(content, Mapping) and MESSAGE_ROLES[message["role"]] == Role.TOOL
    if not isinstance(content, str | list | tuple) and not structured:
        raise PromptError(f"Message {index} has the content {content!r}; expected text or a list of parts.")
    for part in content if isinstance(content, list | tuple) else ():
        kind = part.get("type", "text" if "text" in part else None) if isinstance(part, Mapping) else None
        if MESSAGE_ROLES[message["role"]] == Role.TOOL and isinstance(part, Mapping) and kind is None:
            continue  # results as data
        if kind != "text" or not isinstance(part.get("text"), str):
            said = f"of type {kind!r}" if kind not in (None, "text") else repr(part)
            raise PromptError(
                f"Message {index} has a content part {said}; llmxai gives models text only. Leave the part out, or put "
                f'what it says into words: {{"type": "text", "text": "..."}}.'
            )
