"""Write what follows from the code itself: docs/api.md and cli.md from docstrings and options, and the two schemas.

`make docs` runs it; the tests compare what is written with what would be.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import is_dataclass
from enum import EnumType
from pathlib import Path
from typing import Any

import typer

import llmxai
from llmxai.cli import app
from llmxai.evidence.record import schema_text
from llmxai.methods import METHODS
from llmxai.runs import json_schema

ROOT = Path(__file__).parents[1]
HEAD = "<!-- written by `make docs`; edit the docstrings instead -->\n\n"


def api() -> str:
    """Every public name, in the order of `llmxai.__all__`."""
    parts = [HEAD, "# Python API\n\nEverything that `import llmxai` offers; the rest is private.\n"]
    for name in llmxai.__all__:
        thing = getattr(llmxai, name)
        if isinstance(thing, dict):
            parts += [f"\n## `{name}`\n\nThe table of methods, by name.\n\n", methods()]
        elif inspect.isclass(thing):
            parts.append(of_class(name, thing))
        else:
            parts.append(f"\n## `{name}`\n\n```python\n{signature(thing)}\n```\n\n{doc(thing)}\n")
    return "".join(parts)


def methods() -> str:
    rows = "\n".join(f"| `{m.name}` | {m.summary} | {m.source} |" for m in METHODS.values())
    return f"| method | what it gives | source |\n| --- | --- | --- |\n{rows}\n"


def of_class(name: str, thing: type) -> str:
    text = f"\n## `{name}`\n\n{doc(thing)}\n"
    if isinstance(thing, EnumType):
        return text + "\nValues: " + ", ".join(f"`{value}`" for value in thing) + ".\n"
    if not is_dataclass(thing):
        return text
    rows = "\n".join(f"- `{line}`{f': {told}' if told else ''}" for line, told in fields_of(thing))
    return f"{text}\n{rows}\n"


def fields_of(thing: type) -> Iterator[tuple[str, str]]:
    """(declaration, docstring below it) of every field, from the source."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(thing))).body
    assert isinstance(node, ast.ClassDef)
    for each, following in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(each, ast.AnnAssign):
            told = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                told = one_line(str(following.value.value))
            yield ast.unparse(each), told


def signature(thing: Any) -> str:
    """As it stands in the source, one parameter a line."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(thing))).body
    assert isinstance(node, ast.FunctionDef)
    plain, named = node.args.args, node.args.kwonlyargs
    defaults = [None] * (len(plain) - len(node.args.defaults)) + list(node.args.defaults)
    lines = [declared(argument, default) for argument, default in zip(plain, defaults, strict=True)]
    lines += ["*"] * bool(named)
    lines += [declared(argument, default) for argument, default in zip(named, node.args.kw_defaults, strict=True)]
    lines += [f"**{ast.unparse(node.args.kwarg)}"] if node.args.kwarg else []
    body = "\n".join(f"    {line}," for line in lines)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"def {node.name}(\n{body}\n){returns}"


def declared(argument: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(argument) + ("" if default is None else f" = {ast.unparse(default)}")


def doc(thing: Any) -> str:
    return inspect.cleandoc(thing.__doc__ or "")


def one_line(text: str) -> str:
    return " ".join(text.split())


def cli() -> str:
    """Every command with its options."""
    parts = [HEAD, "# The command line\n\n`llmxai COMMAND --help` says the same.\n"]
    for name, command in sorted(commands(typer.main.get_command(app), "llmxai")):
        parts.append(f"\n## `{name}`\n\n{inspect.cleandoc(command.help or '')}\n\n")
        shown = (each for each in command.params if each.name != "help" and not getattr(each, "hidden", False))
        parts += map(option, shown)
    return "".join(parts)


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    below = getattr(command, "commands", None)
    if below is None:
        yield name, command
        return
    for own, each in below.items():
        yield from commands(each, f"{name} {own}")


def option(parameter: Any) -> str:
    names = " / ".join([*parameter.opts, *parameter.secondary_opts])
    if parameter.param_type_name == "argument":
        names = str(parameter.name).upper()
    default = parameter.default
    shown = (
        "" if default in (None, False, ...) or callable(default) or parameter.required else f" Default: `{default}`."
    )
    return f"- `{names}`: {one_line(getattr(parameter, 'help', None) or '')}{shown}\n"


def recipe_schema() -> str:
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


PAGES = {
    "docs/api.md": api,
    "docs/cli.md": cli,
    "docs/record.schema.json": schema_text,
    "recipes/schema.json": recipe_schema,
}

if __name__ == "__main__":
    for page, make in PAGES.items():
        (ROOT / page).write_text(make(), encoding="utf-8")
        sys.stdout.write(f"{page}\n")
