"""Rows of a recipe's data: generated suites, or files, saved data sets and hub names through `datasets`, streamed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, nodes
from jinja2.sandbox import SandboxedEnvironment

from llmxai.errors import PromptError, RecipeError
from llmxai.evaluation import Row, locate, suite_rows
from llmxai.evaluation.case import Span
from llmxai.evaluation.suites import ROWS
from llmxai.generation import chat_inputs, require_messages
from llmxai.runs.recipe import Recipe, Source
from llmxai.text import bounded

READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
EVAL = ".eval"
"""A log of Inspect (inspect.aisi.org.uk)."""
SHUFFLE_BUFFER = 10_000
SANDBOX = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
SIMPLE = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Getattr, nodes.Getitem, nodes.Const),
    *(nodes.If, nodes.CondExpr, nodes.Test, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not),
    *(nodes.Concat, nodes.Filter),
)
"""Parts of templates that take as long as reading the row does; the others (loops, sums, calls) may never end."""
SIMPLE_FILTERS = ("trim", "upper", "lower", "title", "capitalize", "default", "d", "string", "int", "float", "length")


@dataclass(frozen=True)
class FailedRow:
    """A row that cannot be turned into a prompt."""

    id: str
    source: str
    error: str


def recipe_rows(recipe: Recipe, *, root: Path) -> Iterator[Row | FailedRow]:
    """Every row of every source in order; a row that cannot be built is a FailedRow.

    `root`: the folder that relative paths refer to. Raises RecipeError for data that cannot be read at all, a template
    that is not Jinja, and two rows with the same id.
    """
    seen: set[str] = set()
    for source in recipe.data:
        for row in source_rows(source, root=root):
            if row.id in seen:
                raise RecipeError(f"{source.label}: two rows have the id {row.id!r}. Make the id template unique.")
            seen.add(row.id)
            yield row


def count_rows(recipe: Recipe) -> int | None:
    """The largest possible number of rows; None if a source's length is unknown before it is read."""
    counts = [source.limit or (ROWS if source.suite else None) for source in recipe.data]
    return None if None in counts else sum(count for count in counts if count is not None)


def source_rows(source: Source, *, root: Path) -> Iterator[Row | FailedRow]:
    """The rows of one source."""
    if source.suite is not None:
        for row in suite_rows(
            source.suite, label=source.label, seed=source.seed, limit=source.limit, options=source.options
        ):
            yield replace(row, id=_stem(source) + row.id.removeprefix(source.label))
        return
    templates = _Templates(source)
    for index, columns in enumerate(islice(_columns(source, root=root), source.limit)):
        yield templates.row(index, columns)


def _columns(source: Source, *, root: Path) -> Iterator[Mapping[str, Any]]:
    """Rows as they are in the data."""
    import datasets

    try:
        data = _open(source, root=root)
        if source.shuffle:
            streams = isinstance(data, datasets.IterableDataset)
            data = data.shuffle(seed=source.seed, **({"buffer_size": SHUFFLE_BUFFER} if streams else {}))
        yield from data
    except RecipeError:
        raise
    except StopIteration:
        raise RecipeError(f"{source.label}: has no rows.") from None
    except Exception as error:  # datasets raises its own errors and those of its readers, pyarrow and the hub
        raise RecipeError(f"{source.label}: cannot be read ({type(error).__name__}: {_one_line(error)}).") from error


def _open(source: Source, *, root: Path) -> Any:
    import datasets

    if source.path is not None:
        path = root / source.path
        if path.suffix not in (*READERS, EVAL):
            raise RecipeError(f"{path}: unknown kind of file. Known: {', '.join((*READERS, EVAL))}.")
        if not path.is_file():
            raise RecipeError(f"{path}: no such file. Relative paths start at the recipe's folder, {root}.")
        if path.suffix == EVAL:
            return datasets.Dataset.from_list(list(eval_samples(path)))
        return datasets.load_dataset(READERS[path.suffix], data_files=str(path), split="train", streaming=True)
    if source.saved is not None:
        folder = root / source.saved
        _require_inside(folder)
        if not folder.is_dir():
            raise RecipeError(f"{folder}: no such folder. Relative paths start at the recipe's folder, {root}.")
        found = datasets.load_from_disk(str(folder))
        if not isinstance(found, datasets.DatasetDict):
            return found
        if source.split not in found:
            raise RecipeError(f"{folder}: has no split {source.split!r}. It has: {', '.join(found)}.")
        return found[source.split]
    if Path(str(source.hub)).exists():
        raise RecipeError(f"{source.hub}: is a local path. Give files as path, and what save_to_disk wrote as saved.")
    return datasets.load_dataset(
        source.hub, source.config, split=source.split, revision=source.revision, streaming=True
    )


def eval_samples(path: Path) -> Iterator[dict[str, Any]]:
    """The samples of an Inspect log as rows: id, epoch, row, system, input (the last user message), response, target.

    `row` is the default id of the row. Raises RecipeError without inspect-ai.
    """
    try:
        from inspect_ai.log import read_eval_log
    except ImportError as error:
        raise RecipeError(f"{path}: to read it, run: pip install 'llmxai[inspect]' ({error}).") from error
    for sample in read_eval_log(str(path)).samples or ():
        said = [] if isinstance(sample.input, str) else sample.input
        last = {message.role: message.text for message in said}
        yield {
            "id": str(sample.id),
            "epoch": sample.epoch,
            "row": eval_row(sample.id, sample.epoch),
            "system": last.get("system", ""),
            "input": sample.input if isinstance(sample.input, str) else last.get("user", ""),
            "response": sample.output.completion,
            "target": sample.target if isinstance(sample.target, str) else "; ".join(sample.target),
        }


def eval_row(sample: int | str, epoch: int) -> str:
    """The id of the row of an Inspect log's sample."""
    return _identifier(f"{sample}-{epoch}")


def _require_inside(folder: Path) -> None:
    """Raise RecipeError if a saved data set names files outside of its folder."""
    for state in folder.glob("**/state.json"):
        told = json.loads(state.read_text(encoding="utf-8"))
        names = [str(each["filename"]) for each in told["_data_files"]]
        if any(Path(name).name != name or (state.parent / name).is_symlink() for name in names):
            raise RecipeError(f"{state}: names a file outside of its folder, which is not read.")


class _Templates:
    """A source's templates, compiled once."""

    def __init__(self, source: Source) -> None:
        self.source, self.stem = source, _stem(source)
        self.simple = True
        """Whether no template can take long, so that none needs a process of its own."""
        of_eval = "{{ row }}" if source.path is not None and source.path.endswith(EVAL) else None
        self.id = self._compile(source.id or of_eval, "id")
        self.prompt = self._compile(source.prompt, "prompt")
        turns = () if isinstance(source.messages, str) else source.messages or ()
        self.turns = [(t.role, self._compile(t.content, "messages")) for t in turns]
        self.response = self._compile(source.response, "response")
        self.foil = self._compile(source.foil, "foil")
        self.target = self._compile(source.target, "target")
        self.sources = [self._compile(text, "sources") for text in source.sources]

    def _compile(self, text: str | None, what: str) -> Template | None:
        if text is None:
            return None
        try:
            if not _is_simple(SANDBOX.parse(text)):
                self.simple = False
                bounded(lambda: bool(SANDBOX.from_string(text)))  # what is constant in it is computed at once
            return SANDBOX.from_string(text)
        except (TemplateError, RecursionError, ValueError) as error:
            raise RecipeError(f"{self.source.label}: the {what} template is not Jinja ({error}).") from error

    def row(self, index: int, columns: Mapping[str, Any]) -> Row | FailedRow:
        """The row, or why it cannot be built."""
        name = f"{self.stem}-{index:05d}"
        try:
            said = self._render(columns) if self.simple else bounded(lambda: self._render(columns))
            name = name if said["id"] is None else _identifier(said["id"])
            row = Row(
                id=name,
                source=self.source.label,
                prompt=said["prompt"],
                messages=tuple(said["messages"]) or None,
                response=said["response"],
                foil=said["foil"],
                target=said["target"],
                continue_final_message=self.source.continue_final_message,
            )
            row = replace(row, **self._given(columns))
            spans, places = _located(row, said["sources"])
            spans += self._spans(columns)
        except (
            TemplateError,
            ValueError,
            TypeError,
            ArithmeticError,
            LookupError,
            AttributeError,
            RecursionError,
            PromptError,
        ) as error:
            told = f"row {index}: {_one_line(error).rstrip('.')}. Columns: {', '.join(columns)}."
            return FailedRow(name, self.source.label, told)
        return replace(row, spans=spans, document_spans=places)

    def _render(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "id": _render(self.id, columns),
            "prompt": _render(self.prompt, columns),
            "messages": [{"role": role, "content": _render(turn, columns) or ""} for role, turn in self.turns],
            "response": _render(self.response, columns),
            "foil": _render(self.foil, columns),
            "target": _render(self.target, columns),
            "sources": [_render(template, columns) or "" for template in self.sources],
        }

    def _given(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """What the row's columns hold besides texts, checked as `explain` checks it."""
        source, given = self.source, dict[str, Any]()
        if isinstance(source.messages, str):
            given["messages"] = tuple(_listed(columns, source.messages, "messages"))
            require_messages(given["messages"], continues=source.continue_final_message)
        documents = _listed(columns, source.documents, "documents") if source.documents else []
        tools = _listed(columns, source.tools, "tools") if source.tools else []
        checked = chat_inputs(documents=documents, tools=tools, chat_template_kwargs=source.chat_template_kwargs)
        return given | {
            "documents": checked.documents,
            "tools": checked.tools,
            "chat_template_kwargs": checked.chat_template_kwargs,
        }

    def _spans(self, columns: Mapping[str, Any]) -> tuple[Span, ...]:
        if self.source.spans is None:
            return ()
        found: Sequence[Sequence[int]] = columns[self.source.spans]
        return tuple((int(start), int(end)) for start, end in found)


def _listed(columns: Mapping[str, Any], name: str, what: str) -> list[Any]:
    """The list in a column; JSON text is read.

    Readers give all rows of a column the same keys, and null to those that a row has not: nulls are left out, except in
    JSON text.
    """
    found = columns[name]
    found = json.loads(found) if isinstance(found, str) else without_nulls(found)
    if not found or not isinstance(found, list):
        raise ValueError(f"the column {name!r} holds no {what}")
    return found


def without_nulls(value: Any) -> Any:
    """Lists and objects without the keys whose value is null, at every depth."""
    if isinstance(value, Mapping):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(each) for each in value]
    return value


def _located(row: Row, snippets: Sequence[str]) -> tuple[tuple[Span, ...], tuple[tuple[int, int, int], ...]]:
    """Where the snippets stand: in the prompt or, where they do not, in the documents.

    Raises ValueError unless each occurs exactly once in all of them.
    """
    spans, places = list[Span](), list[tuple[int, int, int]]()
    for snippet in snippets:
        holding = [i for i, document in enumerate(row.documents) if snippet and snippet in document["text"]]
        if not holding or (row.text.count(snippet) and snippet):
            spans.append(locate(row.text, snippet))
        elif len(holding) > 1:
            raise ValueError(f"the source {snippet!r} occurs in {len(holding)} documents; expected exactly once")
        else:
            places.append((holding[0], *locate(row.documents[holding[0]]["text"], snippet)))
    return tuple(spans), tuple(places)


def _render(template: Template | None, columns: Mapping[str, Any]) -> str | None:
    return None if template is None else template.render(columns)


def _is_simple(template: nodes.Template) -> bool:
    return isinstance(template, SIMPLE) and all(
        isinstance(node, SIMPLE) and (not isinstance(node, nodes.Filter) or node.name in SIMPLE_FILTERS)
        for node in template.find_all(nodes.Node)
        if not isinstance(node, nodes.EvalContextModifier)
    )


STRANGE = re.compile(r"[^A-Za-z0-9._-]+")


def _stem(source: Source) -> str:
    """What the ids of a source's rows begin with: they are names of folders, and its label may be anything."""
    return STRANGE.sub("-", source.label).strip(".-")[:60] or "data"


def _identifier(text: str) -> str:
    """A valid folder name: letters, digits, dot, dash and underscore, at most 80 of them."""
    name = STRANGE.sub("-", text).strip(".-")
    if not name or len(name) > 80:
        raise ValueError(
            f"the id {text!r} is empty or longer than 80 once characters that file names cannot have are removed"
        )
    return name


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
