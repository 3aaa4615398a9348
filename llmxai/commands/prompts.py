"""Prompts, documents and tools from the files that a command is given."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmxai.errors import OptionError, PromptError
from llmxai.settings import parse_yaml

TEXT_FILES = (".txt", ".md", ".markdown", ".rst", ".html", ".htm", ".csv", ".json", "")
"""Endings of the files in a folder that are read as documents."""


def asked_from(
    given: Sequence[str | None], prompt_file: Path | None, messages: Path | None, *, raw: bool, chat: bool
) -> dict[str, Any]:
    """What is asked, as the record keeps it: `prompt` or `messages`; `raw` and `chat` say how a prompt is meant."""
    if sum(source is not None for source in (*given, prompt_file, messages)) != 1:
        raise OptionError('Give exactly one of PROMPT (llmxai explain "..."), --prompt, --prompt-file and --messages.')
    if raw and chat:
        raise OptionError("--raw passes the prompt unchanged and --chat through the chat template. Leave one out.")
    if messages is not None:
        if raw:
            raise OptionError("--messages goes through the chat template. Leave out --raw, or give a prompt as text.")
        return {"messages": read_messages(messages)}
    text = read_text(prompt_file) if prompt_file else next(text for text in given if text is not None)
    if not text:
        raise PromptError("The prompt is empty. Give some text: there is nothing to attribute an answer to.")
    return {"prompt": text, "raw": raw, "chat": chat}


def read_text(path: Path) -> str:
    """A UTF-8 file without its byte order mark. Raises PromptError if it is no such text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise PromptError(f"{path}: there is no such file. Check the path.") from error
    except IsADirectoryError as error:
        raise PromptError(f"{path}: is a folder; expected a file of UTF-8 text. Give a file in it.") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}: is not UTF-8 text ({error}). Save it as UTF-8.") from error
    except OSError as error:
        raise PromptError(f"{path}: cannot be read ({error}). Give a file that can be read.") from error


def read_messages(path: Path) -> list[dict[str, Any]]:
    """The messages of a chat. Raises PromptError if the file holds none."""
    value = _json(path)
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        value = value["messages"]
    if not isinstance(value, list):
        raise PromptError(f"{path}: holds a JSON {type(value).__name__}; expected a list of messages.")
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
    if os.path.isdir(path):  # unlike Path's, which raises an error for a name that is too long
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
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{path}: line {number} is not JSON ({error}). Write one object a line.") from error


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
        raise PromptError(f"{path}: is not JSON ({error}). Correct it at that place.") from error


def _template_arg(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise OptionError(f"--template-arg {text!r}: expected name=value, such as enable_thinking=false.")
    try:
        return name, parse_yaml(value)
    except ValueError as error:
        raise OptionError(f"--template-arg {text!r}: the value is not YAML ({error}).") from error
