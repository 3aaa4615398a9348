"""Which rows to process, in which order and in which process."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cached_property
from itertools import count, islice
from typing import Any

from llmxai.evaluation import Row
from llmxai.evidence.record import derived_id
from llmxai.runs.data import FailedRow
from llmxai.runs.ledger import Ledger, key_of
from llmxai.runs.recipe import Recipe, upgraded_recipe

WINDOW = 128
"""Smallest window of rows over which work is balanced; the evidence log, in row order, lags by about as many."""
ROWS_A_WORKER = 16
"""Rows per worker in a window, with many workers."""
BATCHES_A_WORKER = 4
"""A batch is at most this part of a worker's share of the rest; batches shrink, so workers finish together."""


@dataclass(frozen=True)
class Job:
    """One row to process."""

    index: int
    """Its place among all rows."""
    row: Row | FailedRow
    key: str
    record: str
    """Id of its evidence record."""
    tokens: int
    """Tokens of prompt and answer, as far as known in advance."""
    targets: int
    """Largest number of tokens to explain."""

    @property
    def cost(self) -> int:
        """Gradient work grows with both: every node is one forward over the tokens and one backward per target."""
        return self.tokens * self.targets

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "failed": isinstance(self.row, FailedRow)}, default=list)

    @classmethod
    def from_json(cls, text: str) -> Job:
        document = json.loads(text)
        row, failed = document.pop("row"), document.pop("failed")
        if failed:
            return cls(row=FailedRow(**row), **document)
        messages = None if row["messages"] is None else tuple(row["messages"])
        spans = tuple((start, end) for start, end in row["spans"])
        given = {name: tuple(row[name]) for name in ("documents", "tools")}
        given["document_spans"] = tuple(map(tuple, row["document_spans"]))
        return cls(row=Row(**{**row, **given, "messages": messages, "spans": spans}), **document)


@dataclass(frozen=True)
class Window:
    """Consecutive rows."""

    jobs: tuple[Job, ...]
    """All of them, in row order."""
    to_do: frozenset[int]
    """The indices of the rows that are neither done nor prepared."""


@dataclass(frozen=True)
class Plan:
    """Turns rows into jobs."""

    recipe: Recipe
    model: str
    """Digest of the weights, or the model's name if they have none."""
    tokenizer: Any
    ledger: Ledger
    recorded: Container[str]
    """Ids of the records that were already in the log."""
    retry_failed: bool
    identity: str | None = None
    """Digest of everything that decides what the model computes."""
    older: bool = True
    """Whether rows of an older llmxai count, whose keys know the weights alone: the rest is the same, too."""

    def windows(self, rows: Iterable[Row | FailedRow], *, workers: int) -> Iterator[Window]:
        """The rows as jobs, read one window at a time: 128 rows, or 16 per worker if that is more."""
        size = max(WINDOW, ROWS_A_WORKER * workers)
        numbered = enumerate(rows)
        while some := list(islice(numbered, size)):
            jobs = tuple(self.job(index, row) for index, row in some)
            yield Window(jobs, frozenset(job.index for job in jobs if self.is_to_do(job)))

    @cached_property
    def _decisive(self) -> dict[str, Any]:
        return decisive(self.recipe)

    @cached_property
    def _decisive_before(self) -> dict[str, Any] | None:
        return decisive_in_version_1(self.recipe)

    def job(self, index: int, row: Row | FailedRow) -> Job:
        whole = {} if self.identity is None else {"identity": self.identity}
        key = key_of(row=_input(row), model=self.model, settings=self._decisive, **whole)
        if self.older and self._decisive_before is not None:  # a row of an older run that is done stays done
            older = key_of(row=_input(row), model=self.model, settings=self._decisive_before)
            key = key if self.ledger.find(row.id, key=older) is None else older
        tokens, targets = self._size(row)
        return Job(index, row, key, self._record(row, key), tokens, targets)

    def is_to_do(self, job: Job) -> bool:
        if self.ledger.is_prepared(job.row.id, key=job.key):
            return False
        known = self.ledger.find(job.row.id, key=job.key)
        return known is None or (self.retry_failed and known["status"] != "ok")

    def _record(self, row: Row | FailedRow, key: str) -> str:
        """The same row with the same settings has the same id in every run, on whichever worker; a later attempt has
        another id."""
        ids = (derived_id(self.recipe.name, row.id, key, str(attempt)) for attempt in count())
        return next(id for id in ids if id not in self.recorded)

    def _size(self, row: Row | FailedRow) -> tuple[int, int]:
        if isinstance(row, FailedRow):
            return 0, 0
        asked = (
            row.prompt if row.prompt is not None else "\n".join(str(turn.get("content")) for turn in row.messages or ())
        )
        targets = self._tokens(row.response) if row.response is not None else self.recipe.decoding.max_new_tokens
        asked += "\n".join([*(str(each["text"]) for each in row.documents), *map(json.dumps, row.tools)])
        return self._tokens(asked) + targets, targets

    def _tokens(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])


LATER = (
    *("target", "documents", "document_spans", "tools"),
    *("chat_template_kwargs", "continue_final_message"),
)
"""Fields of a row that older versions did not have."""


def _input(row: Row | FailedRow) -> dict[str, Any]:
    """The row's input, for its key; rows without what was added later keep the keys from before there was any."""
    plain = asdict(Row(id="", source=""))
    return {name: value for name, value in asdict(row).items() if name not in LATER or value != plain[name]}


def decisive(recipe: Recipe) -> dict[str, Any]:
    """The parts of a recipe that determine a row's numbers, besides its input and the weights."""
    parts = {"version", "model", "decoding", "explain", "evaluate"}
    if recipe.targets != Recipe.model_fields["targets"].default:  # older recipes keep their keys
        parts.add("targets")
    return recipe.model_dump(mode="json", include=parts)


WIDE = ("float32", "float64")
"""Storage dtypes in which every precision is the same."""


def decisive_in_version_1(recipe: Recipe) -> dict[str, Any] | None:
    """The same in the form of version-1 recipes, for the keys of their runs; None if version 1 could not express it."""
    told = decisive(recipe)
    model = {name: value for name, value in told["model"].items() if name != "trust_remote_code"}
    older = {
        **told,
        "version": 1,
        "model": model,
        "decoding": {k: v for k, v in told["decoding"].items() if k != "top_k"},
    }
    if recipe.explain is not None:
        asked = recipe.explain.gradients
        older["explain"] = {
            "features": recipe.explain.features,
            "baseline": asked.baseline,
            "tolerance": asked.tolerance.relative,
            "max_nodes": asked.max_nodes,
        }
    same = decisive(Recipe.model_validate({**recipe.model_dump(), **upgraded_recipe(older)})) == told
    if recipe.evaluate is not None:  # version 1 evaluated a model in the precision that it is stored in
        same = same and (recipe.model.dtype in WIDE or recipe.evaluate.precision == "stored")
        older["evaluate"] = {name: value for name, value in told["evaluate"].items() if name != "precision"}
    return older if same else None


def share(jobs: Sequence[Job], count: int) -> list[list[Job]]:
    """Distribute jobs over `count` workers with about equal costs (most expensive first, to the least loaded).

    Every process of a run computes this by itself, so it depends only on the jobs.
    """
    shares: list[list[Job]] = [[] for _ in range(count)]
    loads = [0] * count
    for job in sorted(jobs, key=lambda job: (-job.cost, job.index)):
        least = loads.index(min(loads))
        shares[least].append(job)
        loads[least] += job.cost
    return shares


def pack(jobs: Sequence[Job], *, budget: int, workers: int) -> list[list[Job]]:
    """Cut jobs into batches of at most `budget` tokens (a longer row is its own batch), the most expensive first.

    No batch exceeds its share of the cost, or of the rows, that are left when it starts (guided self-scheduling,
    Polychronopoulos & Kuck 1987), so `workers` finish at about the same time. Rows count as well as their cost because
    each takes some time whatever its length.
    """
    parts = workers * BATCHES_A_WORKER
    batches: list[list[Job]] = []
    left, rows = float(sum(job.cost for job in jobs)), len(jobs)
    tokens = cost = most = most_rows = 0.0
    for job in sorted(jobs, key=lambda job: (-job.cost, job.index)):
        full = not batches or len(batches[-1]) + 1 > most_rows or cost + job.cost > most
        if full or tokens + job.tokens > budget:
            batches.append([])
            tokens, cost, most, most_rows = 0, 0, left / parts, rows / parts
        batches[-1].append(job)
        tokens, cost = tokens + job.tokens, cost + job.cost
        left, rows = left - job.cost, rows - 1
    return batches


Stop = Callable[[], bool]
"""Returns whether to stop before the next row."""


LONGEST_WAIT = timedelta(days=30)
"""No time limit for rows: the launcher, not a clock, notices a process that died."""


@dataclass(frozen=True)
class Processes:
    """This process among those of a run."""

    index: int = 0
    count: int = 1
    device_map: str | None = None
    """The device for this process's model, if it must not spread over all devices."""
    wait: Callable[[], None] = lambda: None

    @property
    def leads(self) -> bool:
        return self.index == 0

    def mine(self, row_index: int) -> bool:
        """Rows are assigned in turn."""
        return row_index % self.count == self.index


def processes() -> Processes:
    """As started by torchrun or `accelerate launch`; otherwise a single process."""
    import torch
    from accelerate import PartialState

    # without cpu=True, each of several processes on CPUs would believe that it is alone
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)
    if state.num_processes == 1:
        return Processes()
    on_gpu = state.device.type == "cuda"
    return Processes(
        index=state.process_index,
        count=state.num_processes,
        device_map=f"cuda:{state.local_process_index}" if on_gpu else None,
        wait=state.wait_for_everyone,
    )
