"""Which rows to process, in which order and in which process; and the ledger of finished rows.

The ledger is one small JSON file per row, written by one rename. A row has two states on disk. `ID.prepared`: all its
files are on disk, including its entry and the draft of its record. `ID.json`: its record is in the evidence log too, so
it is done. Both hold the row's key: a digest of its input, the model's digest and the settings. A run killed at any
moment leaves each row done, prepared (the writer of the log completes it) or not done (partial files are replaced).

`ID.aborted` is the draft of an interrupted attempt, until the writer of the log takes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import Any

from llmxai.errors import OutputError
from llmxai.evaluation import Row
from llmxai.evidence import Draft
from llmxai.evidence.files import replace_durably
from llmxai.evidence.record import derived_id
from llmxai.runs.data import FailedRow
from llmxai.runs.recipe import Recipe, upgraded_recipe

SCHEMA = "llmxai.row/1"


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` completely or not at all, even across a power cut. Raises OutputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_durably(path, data)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error}). Choose another folder with --out.") from error


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    text = json.dumps(document, ensure_ascii=False, indent=1, sort_keys=True, allow_nan=False)
    write_atomically(path, (text + "\n").encode("utf-8", "backslashreplace"))


def key_of(**parts: Any) -> str:
    """SHA-256 over the parts as JSON with sorted keys."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=list)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


class Ledger:
    """The rows of one run."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "ledger"

    def find(self, row_id: str, *, key: str) -> dict[str, Any] | None:
        """The row's entry if it is done under this key."""
        entry = self.read(row_id)
        return entry if entry is not None and entry.get("key") == key else None

    def read(self, row_id: str) -> dict[str, Any] | None:
        """The row's entry, whatever its key; None if there is no readable one."""
        return _read(self._path(row_id, "json"))

    def rows(self) -> list[str]:
        """The ids of the rows that are done."""
        return sorted(path.stem for path in self.folder.glob("*.json"))

    def prepare(self, row_id: str, entry: Mapping[str, Any], draft: Draft | None) -> None:
        """Store the row's future entry and record. All other files of the row must already be on disk."""
        kept = None if draft is None else draft.to_json()
        document = {"schema": SCHEMA, "key": entry["key"], "entry": dict(entry), "draft": kept}
        write_json(self._path(row_id, "prepared"), document)

    def prepared(self, row_id: str, *, key: str) -> tuple[dict[str, Any], Draft | None] | None:
        """The entry and the draft of the row, if it is prepared under this key."""
        found = _read(self._path(row_id, "prepared"))
        if found is None or found.get("key") != key:
            return None
        return found["entry"], None if found["draft"] is None else Draft.from_json(found["draft"])

    def is_prepared(self, row_id: str, *, key: str) -> bool:
        """Whether the row is prepared under this key."""
        found = _read(self._path(row_id, "prepared"))
        return found is not None and found.get("key") == key

    def has(self, row_id: str, *, key: str, attempt: str) -> bool:
        """Whether this attempt at the row is prepared or done: a batch may be handed out again after that."""
        if self.is_prepared(row_id, key=key):  # checked first, since a row is prepared until it is done
            return True
        entry = self.find(row_id, key=key)
        return entry is not None and entry.get("attempt") == attempt

    def commit(self, row_id: str, entry: Mapping[str, Any]) -> None:
        """Mark the row as done: its record is in the log."""
        write_json(self._path(row_id, "json"), {"schema": SCHEMA, **entry})
        self._path(row_id, "prepared").unlink(missing_ok=True)

    def abort(self, row_id: str, draft: Draft) -> None:
        """Store the record of an interrupted attempt."""
        write_json(self._path(row_id, "aborted"), {"schema": SCHEMA, "draft": draft.to_json()})

    def aborted(self) -> Iterator[tuple[Path, Draft]]:
        """The records of interrupted attempts, each with its file."""
        for path in sorted(self.folder.glob("*.aborted")):
            found = _read(path)
            if found is not None:
                yield path, Draft.from_json(found["draft"])

    def _path(self, row_id: str, state: str) -> Path:
        return self.folder / f"{row_id}.{state}"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return entry if isinstance(entry, dict) and entry.get("schema") == SCHEMA else None


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
        return cls(row=Row(**{**row, "messages": messages, "spans": spans}), **document)


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
        key = key_of(row=asdict(row), model=self.model, settings=self._decisive)
        if self._decisive_before is not None:  # a row of an older run that is done stays done
            older = key_of(row=asdict(row), model=self.model, settings=self._decisive_before)
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
        asked = row.prompt if row.prompt is not None else "\n".join(turn["content"] for turn in row.messages or ())
        targets = self._tokens(row.response) if row.response is not None else self.recipe.decoding.max_new_tokens
        return self._tokens(asked) + targets, targets

    def _tokens(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def decisive(recipe: Recipe) -> dict[str, Any]:
    """The parts of a recipe that determine a row's numbers, besides its input and the weights."""
    return recipe.model_dump(mode="json", include={"version", "model", "decoding", "explain", "evaluate"})


def decisive_in_version_1(recipe: Recipe) -> dict[str, Any] | None:
    """The same in the form of version-1 recipes, for the keys of their runs; None if version 1 could not express it."""
    told = decisive(recipe)
    older = {**told, "version": 1, "decoding": {k: v for k, v in told["decoding"].items() if k != "top_k"}}
    if recipe.explain is not None:
        asked = recipe.explain.gradients
        older["explain"] = {
            "features": recipe.explain.features,
            "baseline": asked.baseline,
            "tolerance": asked.tolerance.relative,
            "max_nodes": asked.max_nodes,
        }
    same = decisive(Recipe.model_validate({**recipe.model_dump(), **upgraded_recipe(older)})) == told
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
