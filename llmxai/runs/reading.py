"""Read a recipe file, apply `--set a.b=c`, and say plainly what is wrong with it."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from llmxai.errors import OptionError, RecipeError, did_you_mean
from llmxai.evaluation import require_suite
from llmxai.methods import require_method
from llmxai.runs.recipe import VERSION, Recipe, upgraded_recipe
from llmxai.settings import put

SUFFIXES = (".yaml", ".yml")


def recipes_folder() -> Path:
    """`recipes/` of the current directory, else the one beside the package in a clone."""
    here = Path("recipes")
    return here if here.is_dir() else Path(__file__).parents[2] / "recipes"


def list_recipes(folder: Path | None = None) -> list[Path]:
    """The recipe files of a folder, in order of name."""
    folder = folder or recipes_folder()
    return sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES)


def find_recipe(name: str) -> Path:
    """The file of a recipe that is named by its path or, within `recipes/`, by its stem."""
    path = Path(name)
    if path.is_file():
        return path
    known = {found.stem: found for found in list_recipes()}
    if name in known:
        return known[name]
    raise RecipeError(f"{name}: no such recipe file.{did_you_mean(name, known)} Known: {_listed(known)}.")


def read_recipe(path: Path | str, *, settings: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file with `settings` (each `a.b=value`, the value in YAML) put into it.

    Raises RecipeError for what is not YAML, unknown keys (with the nearest known one), values out of range, unknown
    suites and methods, and options that those do not have.
    """
    path = Path(path)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}).") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: is not YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(document, dict):
        raise RecipeError(f"{path}: holds a {type(document).__name__}; expected keys such as version, name and data.")
    for setting in settings:
        _put(document, setting)
    return check_recipe(document, where=str(path))


def check_recipe(document: dict[str, Any], *, where: str) -> Recipe:
    """The recipe in parsed YAML; raises RecipeError with one paragraph that names every fault."""
    if document.get("version", VERSION) not in range(1, VERSION + 1):
        raise RecipeError(f"{where}: version is {document['version']!r} and this llmxai reads 1 to {VERSION}.")
    try:
        recipe = Recipe.model_validate(upgraded_recipe(document))
    except ValidationError as error:
        raise RecipeError(f"{where}: {'; '.join(_faults(error))}.") from error
    for source in recipe.data:
        if source.suite is not None:
            require_suite(source.suite, source.options, where=where)
    for contender in recipe.evaluate.methods if recipe.evaluate else ():
        _require_method(contender.method, contender.options, where=where)
    for name in (*recipe.explain.also, recipe.explain.rollout.variant) if recipe.explain else ():
        _require_method(name, {}, where=where)
    return recipe


def _put(document: dict[str, Any], setting: str) -> None:
    try:
        put(document, setting)
    except OptionError as error:
        raise RecipeError(str(error)) from error


def _require_method(name: str, options: Mapping[str, Any], *, where: str) -> None:
    try:
        require_method(name, options, where=where)
    except OptionError as error:
        raise RecipeError(str(error)) from error


def _faults(error: ValidationError) -> list[str]:
    faults = []
    for fault in error.errors():
        place = ".".join(str(part) for part in fault["loc"])
        if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            known = sorted(_fields_at(Recipe, fault["loc"][:-1]))
            near = did_you_mean(str(fault["loc"][-1]), known)
            faults.append(f"unknown key {place!r}.{near} Known there: {_listed(known)}".rstrip("."))
        elif fault["type"] == "missing":
            faults.append(f"{place!r} is missing")
        elif fault["type"] == "value_error":
            faults.append(f"{place or 'the recipe'}: {fault['ctx']['error']}")
        else:
            faults.append(f"{place!r} is {fault['input']!r}: {fault['msg'][0].lower()}{fault['msg'][1:]}")
    return faults


def _fields_at(model: type, place: Sequence[int | str]) -> set[str]:
    """The keys that a recipe may hold at `place`: fields of our models, or of the settings."""
    for part in place:
        if isinstance(part, int) or part not in _fields_of(model):
            continue
        annotation = typing.get_type_hints(model)[part]
        inner = [a for a in (annotation, *_arguments(annotation)) if isinstance(a, type) and _fields_of(a)]
        if not inner:
            return set()
        model = inner[0]
    return _fields_of(model)


def _fields_of(model: type) -> set[str]:
    if issubclass(model, BaseModel):
        return set(model.model_fields)
    return {each.name for each in fields(model)} if is_dataclass(model) else set()


def _arguments(annotation: Any) -> list[Any]:
    found = []
    for argument in typing.get_args(annotation):
        found += [argument, *_arguments(argument)]
    return found


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
