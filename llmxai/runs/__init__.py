"""Recipes and runs: what to explain and evaluate, written down, and done so that it survives being killed."""

from typing import TYPE_CHECKING

from llmxai._lazy import lazy

if TYPE_CHECKING:
    from llmxai.runs.reading import find_recipe, list_recipes, read_recipe
    from llmxai.runs.recipe import Recipe, json_schema
    from llmxai.runs.redaction import clear_removed
    from llmxai.runs.runner import RunOutcome, run_recipe
    from llmxai.runs.writer import RunProgress

__all__ = [
    "Recipe",
    "RunOutcome",
    "RunProgress",
    "clear_removed",
    "find_recipe",
    "json_schema",
    "list_recipes",
    "read_recipe",
    "run_recipe",
]

if not TYPE_CHECKING:
    __getattr__ = lazy(
        __name__,
        {
            **dict.fromkeys(("find_recipe", "list_recipes", "read_recipe"), "llmxai.runs.reading"),
            **dict.fromkeys(("Recipe", "json_schema"), "llmxai.runs.recipe"),
            **dict.fromkeys(("RunOutcome", "run_recipe"), "llmxai.runs.runner"),
            "RunProgress": "llmxai.runs.writer",
            "clear_removed": "llmxai.runs.redaction",
        },
    )
