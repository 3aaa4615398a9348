"""Recipes: what to run, on which model and data, as YAML checked against a schema (docs/recipes.md)."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llmxai.errors import OptionError, RecipeError, did_you_mean
from llmxai.evaluation import require_suite
from llmxai.evaluation.measure import CONTROLS
from llmxai.explain import require_methods
from llmxai.methods import require_method
from llmxai.settings import LONGEST_YAML, MOST_SEED, Decoding, Settings, in_words, near_field, parse_yaml, put

VERSION = 2
"""Version of the schema. Version 1 had four flat keys under `explain`; it can still be read."""

Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=MOST_SEED)]
"""A seed that both NumPy and PyTorch take."""
OptionValue = str | int | float | bool | None | list[int] | list[float] | list[str] | dict[str, float]
MetricName = Literal[
    "planted", "sources", "aopc", "soft", "curves", "top_k", "lds", "infidelity", "max_sensitivity", "randomisation"
]


class Strict(BaseModel):
    """Unknown keys are refused, values are not coerced to other types, and instances are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class ModelSettings(Strict):
    """Which model, as `llmxai.load` takes it."""

    name: str = "smollm2"
    """smollm2, a .gguf file, a local folder or a hub name; or one of the suites' own models: marker and tracer (trained
    locally on planted tasks) or closed_form (linear, with attributions in closed form)."""
    dtype: Literal["float32", "bfloat16", "float16", "float64", "auto"] | None = "float32"
    device_map: str | dict[str, int | str] | None = None
    quantize: Literal["4bit", "8bit"] | None = None
    revision: str | None = None
    adapter: str | None = None
    trust_remote_code: bool = False
    """Let the Python files of the model's folder run, which can do anything; records say so."""


class Turn(Strict):
    """One chat message; the content is a Jinja template over the row's columns."""

    role: Literal["system", "developer", "user", "assistant", "tool", "context"]
    content: str


class Source(Strict):
    """Where rows come from: exactly one of `suite`, `path`, `saved` and `hub`.

    Rows of a suite have their own prompt, answer and known sources. For the others, `prompt` (raw text) or `messages`,
    `response`, `foil` and `sources` are Jinja templates over the columns of a row.
    """

    name: str | None = None
    """Label in tables; by default the suite, the file's stem or the hub name."""
    suite: str | None = None
    """A generated suite: see `llmxai recipes suites`."""
    options: dict[str, OptionValue] = {}
    """Options of the suite."""
    path: str | None = None
    """A .jsonl, .json, .csv or .parquet file, or a log of Inspect (.eval); relative to the recipe's folder."""
    saved: str | None = None
    """A folder written by datasets' save_to_disk."""
    hub: str | None = None
    """A dataset's name on the HuggingFace hub."""
    config: str | None = None
    """Configuration of a hub dataset."""
    revision: str | None = None
    """Branch, tag or commit of a hub dataset."""
    split: str = "train"
    limit: Positive | None = None
    """Largest number of rows."""
    shuffle: bool = False
    """Take rows in an order drawn from `seed` (a streamed file is shuffled through a buffer of 10,000 rows)."""
    seed: Seed = 0
    id: str | None = None
    """Template for the row's id; by default its number."""
    prompt: str | None = None
    messages: list[Turn] | str | None = None
    """Templates of the turns, or the column that holds a conversation: a list of messages as `explain` takes them, with
    tool calls and tool results if there are any."""
    documents: str | None = None
    """Column with the documents that the question is about: a list of texts, or of objects with `text` and `title`."""
    tools: str | None = None
    """Column with the JSON schemas of what the model may call."""
    chat_template_kwargs: dict[str, OptionValue] = {}
    """Variables for the chat template, such as enable_thinking."""
    continue_final_message: bool = False
    """The answer continues the last message, which is the assistant's."""
    target: str | None = None
    """Template for what of the answer is explained, as in the recipe's `targets`, which it replaces."""
    response: str | None = None
    """Template for the answer to explain; without it the model generates one."""
    foil: str | None = None
    """Template for an answer that the model did not give; the target becomes the contrast with it."""
    sources: list[str] = []
    """Templates, each for a piece of the prompt, or of one document, that is known to matter; it must occur once."""
    spans: str | None = None
    """Column with known sources as [[start, end], ...], in characters of the raw prompt or of the last message."""

    @model_validator(mode="after")
    def _one_origin(self) -> Source:
        given = [name for name in ("suite", "path", "saved", "hub") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of suite, path, saved and hub; given: {', '.join(given) or 'none'}")
        own = [
            name
            for name in (
                *("prompt", "messages", "documents", "tools", "chat_template_kwargs", "continue_final_message"),
                *("target", "response", "foil", "spans"),
            )
            if getattr(self, name) not in (None, {}, False)
        ]
        if self.suite is not None and (own or self.sources):
            raise ValueError(f"a suite has its own rows; remove {', '.join(own or ['sources'])}")
        if self.suite is None and self.options:
            raise ValueError("options belong to a suite")
        if self.suite is None and (self.prompt is None) == (self.messages is None):
            raise ValueError("give either a prompt template or messages")
        return self

    @property
    def label(self) -> str:
        origin = self.suite or self.path or self.saved or self.hub or ""
        return self.name or origin.rstrip("/").rsplit("/", 1)[-1].partition(".")[0]


class Contender(Strict):
    """A method with its options, to be compared with others."""

    method: str
    options: dict[str, OptionValue] = {}
    label: str | None = None
    """Name in tables; by default the method and its options."""

    @property
    def name(self) -> str:
        words = [str(value) for value in self.options.values()]
        return self.label or " ".join([self.method, *words])


class EvaluateSettings(Strict):
    """Score methods. random, recency and leave_one_out are always included."""

    methods: list[Contender] = Field(min_length=1)
    metrics: list[MetricName] = ["planted", "aopc", "top_k", "lds"]
    target: Literal["first", "answer"] = "first"
    """What is explained: the first generated token, or the whole answer as one sum of log-probs."""
    removal: Literal["delete", "baseline", "mean"] = "delete"
    """How tokens are removed: deleted, or replaced by the neutral token's embedding (baseline) or the mean one."""
    precision: Literal["float32", "stored"] = "float32"
    """What a model stored in 16, 8 or 4 bits computes in: float32, as in explanations, or its `stored` dtype."""
    masks: Positive = 32
    """Random subsets for LDS and infidelity."""
    samples: Positive = 8
    """Draws for soft-NC/NS and perturbations for max-sensitivity."""
    points: Annotated[int, Field(ge=2)] = 10
    """Points of the deletion and insertion curves."""
    resamples: Positive = 2000
    """Bootstrap resamples of the intervals."""
    seed: Seed = 0

    @model_validator(mode="after")
    def _no_twins(self) -> EvaluateSettings:
        names = [contender.name for contender in self.methods]
        for contender in self.methods:
            if contender.name in {control.name for control in CONTROLS} and (
                contender.method != contender.name or contender.options
            ):
                raise ValueError(f"{contender.name!r} is one of the controls: give the method another label")
        twins = sorted({name for name in names if names.count(name) > 1})
        if twins:
            raise ValueError(f"two methods share the name {twins[0]!r}: give one of them another label")
        return self


class WorkerSettings(Strict):
    """How the work is distributed; the results are the same."""

    count: Positive | None = None
    """Processes (accelerate) or actors (ray); by default one per GPU, or one."""
    cpus: Annotated[float, Field(gt=0)] = 1
    """CPUs of a Ray actor."""
    gpus: Annotated[float, Field(ge=0)] | None = None
    """GPUs of a Ray actor; by default one if the cluster has any."""
    token_budget: Positive = 16384
    """Tokens (of prompts and answers) handed to an actor at a time."""


class Recipe(Strict):
    """One run."""

    version: Literal[2]
    """Version of this schema: 2."""
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    description: str = ""
    model: ModelSettings = ModelSettings()
    data: list[Source] = Field(min_length=1)
    decoding: Decoding = Decoding()
    """How answers are generated for rows without one."""
    explain: Settings | None = Settings()
    """How answers are explained (`llmxai.Settings`); null: no explanations, only the evaluation."""
    targets: Annotated[list[str], Field(min_length=1)] = ["token"]
    """What of every answer is explained: token (each of them), word, sentence, answer (all at once), i:j (a range of
    generated tokens), or a text that every answer holds. A suite's row with a target of its own keeps it."""
    evaluate: EvaluateSettings | None = None
    workers: WorkerSettings = WorkerSettings()

    @property
    def evaluated(self) -> list[str]:
        """The names of the methods in the tables of the evaluation, controls included; empty without one."""
        if self.evaluate is None:
            return []
        names = [method.name for method in self.evaluate.methods] + [control.name for control in CONTROLS]
        return list(dict.fromkeys(names))

    @model_validator(mode="after")
    def _some_work(self) -> Recipe:
        if self.explain is None and self.evaluate is None:
            raise ValueError("nothing to do: give explain or evaluate")
        labels = [source.label for source in self.data]
        twins = sorted({label for label in labels if labels.count(label) > 1})
        if twins:
            raise ValueError(f"two data sources share the label {twins[0]!r}: give one of them a name")
        return self


def upgraded_recipe(document: Mapping[str, Any]) -> dict[str, Any]:
    """A parsed recipe of version 1 as one of version 2; a newer one unchanged."""
    document = dict(document)
    if document.get("version") != 1:
        return document
    document["version"] = VERSION
    old = document.get("explain")
    if isinstance(old, Mapping):
        rest = dict(old)
        gradients = {key: rest.pop(key) for key in ("baseline", "tolerance", "max_nodes") if key in rest}
        if "tolerance" in gradients:
            gradients["tolerance"] = {"relative": gradients["tolerance"]}
        nested = rest.get("gradients", {})  # from --set, which uses version 2
        document["explain"] = {**rest, "gradients": {**gradients, **nested} if isinstance(nested, Mapping) else nested}
    return document


def json_schema() -> dict[str, Any]:
    """The schema of a recipe file (recipes/schema.json), for editors."""
    schema: Mapping[str, Any] = Recipe.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


SUFFIXES = (".yaml", ".yml")


def _installed() -> Path:
    """The folder of the installed recipes; in a clone it is next to the package."""
    package = Path(str(resources.files("llmxai")))
    return next(place for place in (package / "recipes", package.parent / "recipes") if place.is_dir())


def _recipes_in(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*") if path.suffix in SUFFIXES]


def recipe_names(folder: Path | None = None) -> dict[str, Path]:
    """The recipe files of a folder by name or, by default, the installed ones and those in `recipes/` of the current
    directory: one there that has the name of an installed one goes by its path.

    Raises RecipeError if there is no such folder.
    """
    if folder is not None and not folder.is_dir():
        raise RecipeError(f"{folder}: there is no such folder. Give a folder that holds recipes, or leave it out.")
    found = {path.stem: path for path in _recipes_in(_installed() if folder is None else folder)}
    own = Path("recipes")
    if folder is None and own.is_dir() and not own.samefile(_installed()):
        found |= {str(path) if path.stem in found else path.stem: path for path in _recipes_in(own)}
    return dict(sorted(found.items()))


def find_recipe(name: str) -> Path:
    """The file of a recipe given by path or by its name (`recipe_names`)."""
    path = Path(name)
    if path.is_file():
        return path
    known = recipe_names()
    if name in known:
        return known[name]
    raise RecipeError(f"{name}: no such recipe file.{did_you_mean(name, known)} Known: {_listed(known)}.")


def read_recipe(path: Path | str, *, settings: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, changed by `settings` (each `a.b=value`, the value in YAML).

    Raises RecipeError for invalid YAML, unknown keys (suggesting the nearest), values out of range, unknown suites and
    methods, and unknown options of theirs.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as stream:
            text = stream.read(LONGEST_YAML + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}). Expected a YAML file in UTF-8.") from error
    try:
        document = parse_yaml(text)
    except ValueError as error:
        raise RecipeError(f"{path}: is not YAML ({error}).") from error
    if not isinstance(document, dict):
        raise RecipeError(f"{path}: holds a {type(document).__name__}; expected keys such as version, name and data.")
    for setting in settings:
        _put(document, setting)
    return check_recipe(document, where=str(path))


def check_recipe(document: dict[str, Any], *, where: str) -> Recipe:
    """The recipe in parsed YAML. Raises RecipeError with one paragraph that lists every fault."""
    if document.get("version", VERSION) not in range(1, VERSION + 1):
        raise RecipeError(f"{where}: version is {document['version']!r} and this llmxai reads 1 to {VERSION}.")
    try:
        recipe = Recipe.model_validate(upgraded_recipe(document))
    except ValidationError as error:
        raise RecipeError(f"{where}: {'; '.join(fault.rstrip('.') for fault in _faults(error))}.") from error
    for source in recipe.data:
        if source.suite is not None:
            require_suite(source.suite, source.options, where=where)
    try:
        for contender in recipe.evaluate.methods if recipe.evaluate else ():
            require_method(contender.method, contender.options)
        if recipe.explain is not None:
            require_methods(recipe.explain)
    except OptionError as error:
        raise RecipeError(f"{where}: {error}") from error
    return recipe


def _put(document: dict[str, Any], setting: str) -> None:
    try:
        put(document, setting)
    except OptionError as error:
        raise RecipeError(str(error)) from error


def _faults(error: ValidationError) -> list[str]:
    faults = []
    for fault in error.errors():
        place = ".".join(str(part) for part in fault["loc"])
        if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            known = sorted(_fields_at(Recipe, fault["loc"][:-1]))
            near = did_you_mean(str(fault["loc"][-1]), known)
            if not near and place.startswith("explain."):
                near = near_field(place.removeprefix("explain."))
            faults.append(f"unknown key {place!r}.{near} Known there: {_listed(known)}")
        elif fault["type"] == "missing":
            faults.append(f"{place!r} is missing")
        elif fault["type"] == "value_error":
            faults.append(f"{place or 'the recipe'}: {fault['ctx']['error']}")
        else:
            faults.append(f"{place!r} is {fault['input']!r}: {in_words(fault)}")
    return faults


def _fields_at(model: type, place: Sequence[int | str]) -> set[str]:
    """The keys that a recipe may have at `place`: fields of our models, or of the settings."""
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
