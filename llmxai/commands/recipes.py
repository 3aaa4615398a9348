"""`llmxai recipes`: what can be run, and whether a recipe is right."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

recipes = typer.Typer(no_args_is_help=True, help="List, show and check recipes.")

Settings = Annotated[list[str], typer.Option("--set", help="Change one setting: a.b=value, data.0.limit=5.")]


def _print(table: Table) -> None:
    Console(width=None if sys.stdout.isatty() else 400).print(table)


@recipes.command("ls")
def ls(
    folder: Annotated[Path | None, typer.Argument(help="Folder of recipes; recipes/ by default.")] = None,
) -> None:
    """List recipes: name, model, data and what they are for."""
    from llmxai.errors import UserError
    from llmxai.runs import list_recipes, read_recipe

    table = Table("recipe", "model", "data", "what it does", box=None, pad_edge=False)
    for path in list_recipes(folder):
        try:
            recipe = read_recipe(path)
        except UserError as error:
            table.add_row(path.stem, "-", "-", f"cannot be read: {error}")
            continue
        data = ", ".join(source.label for source in recipe.data)
        table.add_row(path.stem, recipe.model.name, data, recipe.description)
    _print(table)


@recipes.command("show")
def show(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or file.")],
    settings: Settings = [],  # noqa: B006  (Typer wants a list)
) -> None:
    """Print a recipe with every default filled in."""
    import yaml

    from llmxai.runs import find_recipe, read_recipe

    resolved = read_recipe(find_recipe(recipe), settings=settings).model_dump(mode="json")
    typer.echo(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True), nl=False)


@recipes.command("validate")
def validate(
    recipe: Annotated[list[str], typer.Argument(help="Names or files of recipes.")],
    settings: Settings = [],  # noqa: B006
) -> None:
    """Check recipes; exit 2 with what is wrong at the first that is not right."""
    from llmxai.runs import find_recipe, read_recipe

    for name in recipe:
        path = find_recipe(name)
        read_recipe(path, settings=settings)
        typer.echo(f"{path}: valid")


@recipes.command("suites")
def suites() -> None:
    """List the generated suites and their options."""
    from llmxai.evaluation import SUITES

    table = Table("suite", "options", "what it asks", box=None, pad_edge=False)
    for entry in SUITES.values():
        table.add_row(entry.name, ", ".join(f"{k}={v}" for k, v in entry.options.items()), entry.summary)
    _print(table)


@recipes.command("schema")
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from llmxai.runs import json_schema

    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
