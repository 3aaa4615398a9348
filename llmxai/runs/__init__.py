"""Recipes and runs: what to explain and evaluate, written down, and done so that it survives being killed."""

from llmxai.runs.clerk import News
from llmxai.runs.reading import find_recipe, list_recipes, read_recipe
from llmxai.runs.recipe import Recipe, json_schema
from llmxai.runs.runner import RunOutcome, run_recipe

__all__ = ["News", "Recipe", "RunOutcome", "find_recipe", "json_schema", "list_recipes", "read_recipe", "run_recipe"]
