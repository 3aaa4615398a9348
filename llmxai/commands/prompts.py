"""Prompts, documents and tools from the files that a command is given."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmxai.errors import OptionError, PromptError
from llmxai.settings import parse_yaml

TEXT_FILES = (".txt", ".md", ".markdown", ".rst", ".html", ".htm", ".csv", ".json", "")
"""Endings of the files in a folder that are read as documents."""


def asked_from(
    prompt: str | None, prompt_file: Path | None, messages: Path | None, *, chat: bool, continues: bool
) -> tuple[str | None, list[dict[str, Any]] | None]:
    """The raw prompt or the messages; with `chat`, a prompt is the message of a user.

    Raises OptionError unless exactly one of them is given, and PromptError for a file that does not hold it.
    """
    if sum(source is not None for source in (prompt, prompt_file, messages)) != 1:
        raise OptionError("Give exactly one of --prompt, --prompt-file and --messages.")
    if messages is not None:
        return None, read_messages(messages, continues=continues)
    text = read_text(prompt_file) if prompt_file else prompt
    return (None, [{"role": "user", "content": text}]) if chat else (text, None)


def read_text(path: Path) -> str:
    """A UTF-8 file without its byte order mark. Raises PromptError if it is no such text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path}: cannot be read as UTF-8 text ({error}).") from error


def read_messages(path: Path, *, continues: bool) -> list[dict[str, Any]]:
    """The messages of a chat. Raises PromptError if the file holds none."""
    from llmxai.generation.chat import require_messages

    value = _json(path)
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        value = value["messages"]
    if not isinstance(value, list):
        raise PromptError(f"{path}: holds a JSON {type(value).__name__}; expected a list of messages.")
    require_messages(value, continues=continues)
    return value


def context_from(
    *,
    documents: Path | None,
    documents_in: str,
    tools: Path | None,
    template_args: Sequence[str],
    continue_final_message: bool,
) -> dict[str, Any]:
    """What goes with a prompt, as arguments of `explain`: checked, and empty where nothing was given.

    Raises PromptError for files that do not hold it, and OptionError for the rest.
    """
    from llmxai.generation import chat_inputs

    given = chat_inputs(
        documents=read_documents(documents) if documents else None,
        documents_in=documents_in,
        tools=_tools(tools) if tools else None,
        chat_template_kwargs=dict(_template_arg(each) for each in template_args),
        continue_final_message=continue_final_message,
    )
    return given.request()


def read_documents(path: Path) -> list[dict[str, Any]]:
    """The documents of a JSON-lines file (or a JSON list), or the text files of a folder in the order of their names.

    Raises PromptError if there are none.
    """
    if path.is_dir():
        files = sorted(each for each in path.iterdir() if each.is_file() and not each.name.startswith("."))
        if strange := [each for each in files if each.suffix.lower() not in TEXT_FILES]:
            raise PromptError(f"{strange[0]}: is no text file. Documents are text: convert it, or take it away.")
        found: list[Any] = [{"title": each.name, "text": read_text(each)} for each in files]
    elif path.suffix == ".json":
        found = _json(path)
    else:
        lines = enumerate(read_text(path).split("\n"), start=1)
        found = [_line(path, number, line) for number, line in lines if line.strip()]
    if not isinstance(found, list) or not found:
        raise PromptError(f'{path}: holds no documents; expected lines such as {{"title": ..., "text": ...}}.')
    return found


def _line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise PromptError(f"{path}: line {number} is not JSON ({error}).") from error


def _tools(path: Path) -> list[Any]:
    value = _json(path)
    if isinstance(value, dict) and isinstance(value.get("tools"), list):
        value = value["tools"]
    if not isinstance(value, list):
        raise PromptError(f"{path}: holds a JSON {type(value).__name__}; expected a list of tools.")
    return value


def _json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{path}: is not JSON ({error}).") from error


def _template_arg(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise OptionError(f"--template-arg {text!r}: expected name=value, such as enable_thinking=false.")
    try:
        return name, parse_yaml(value)
    except ValueError as error:
        raise OptionError(f"--template-arg {text!r}: the value is not YAML ({error}).") from error
