"""Recipes and runs: what to explain and evaluate, and running it so that it survives being killed."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from llmxai.runs.ledger import clear_removed
    from llmxai.runs.recipe import Recipe, find_recipe, json_schema, read_recipe, recipe_names
    from llmxai.runs.runner import RunOutcome, run_recipe
    from llmxai.runs.writer import RunProgress

__all__ = [
    "Recipe",
    "RunOutcome",
    "RunProgress",
    "clear_removed",
    "find_recipe",
    "json_schema",
    "read_recipe",
    "recipe_names",
    "run_recipe",
]

if not TYPE_CHECKING:
    __getattr__, __dir__, _ = lazy_loader.attach(
        __name__,
        submod_attrs={
            "ledger": ["clear_removed"],
            "recipe": ["Recipe", "find_recipe", "json_schema", "read_recipe", "recipe_names"],
            "runner": ["RunOutcome", "run_recipe"],
            "writer": ["RunProgress"],
        },
    )
