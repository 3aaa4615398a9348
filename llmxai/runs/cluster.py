"""Rows on the actors of Ray Data: several workers on one machine or many (docs/scale.md).

Batches of rows are Parquet files in the run's folder, which every node must see. Ray Data streams their numbers to
actors that hold the model; an actor reads its batch, prepares each row in the run's folder like any worker, and
returns the ids. Only the process that started the run writes the evidence log, the ledger and the tables. An actor that
dies is replaced (Ray Data restarts it as often as needed) and gets its batch again; rows already prepared are kept.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from llmxai.errors import LlmxaiError, OptionError
from llmxai.evaluation import Row
from llmxai.evidence import drafting
from llmxai.evidence.sealing import utc_now
from llmxai.runs.data import FailedRow
from llmxai.runs.engines import POLL, EngineInfo, load_for, site_of
from llmxai.runs.ledger import Ledger
from llmxai.runs.recipe import Recipe
from llmxai.runs.scheduling import Job, Processes, Stop, Window, pack
from llmxai.runs.worker import EVIDENCE, Worker, request_of
from llmxai.runs.writer import Progress, RunProgress, RunWriter

OBJECT_STORE = 256 * 2**20
"""Bytes of the object store of a cluster that we start; only ids and rows of data pass through it."""
DEATHS = 3
"""How often a row's worker may die before the row counts as failed."""
PATIENCE = 20.0
"""Seconds that the actors of our own cluster get to shut down."""
STOP = "stop"


class RayEngine:
    """Connects to the cluster that RAY_ADDRESS names; without one, starts and stops one on this machine."""

    def __init__(self, recipe: Recipe, run: Path, *, workers: int | None, signed_by: str | None) -> None:
        self.recipe, self.run, self.signed_by = recipe, run.absolute(), signed_by
        self.ray: Any = None
        self.own = False
        self.wanted = workers or recipe.workers.count
        self.batches: Path | None = None
        """Set while rows are running, or if they were interrupted."""
        self.gpus = recipe.workers.gpus

    @property
    def workers(self) -> int:
        return self.wanted or 1

    def start(self, progress: Progress) -> EngineInfo:
        progress(RunProgress("starting Ray", engine="ray"))
        self.ray = _ray()
        if not self.ray.is_initialized():
            self._connect()
        available = self.ray.cluster_resources()
        if self.gpus is None:
            self.gpus = 1.0 if available.get("GPU") else 0.0
        if self.wanted is None:
            kind, each = ("GPU", self.gpus) if self.gpus else ("CPU", self.recipe.workers.cpus)
            self.wanted = max(1, int((available.get(kind, 1) - (kind == "CPU")) / each))
        progress(RunProgress("loading the model", engine="ray"))
        look = self.ray.remote(num_cpus=self.recipe.workers.cpus, num_gpus=self.gpus, max_retries=0)(_look)
        with _unwrapped():
            site: EngineInfo = self.ray.get(look.remote(self.recipe.model_dump_json(), os.getcwd()))
        return site

    def perform(self, windows: Iterable[Window], clerk: RunWriter | None, stop: Stop) -> None:
        assert clerk is not None
        batches = self.batches = Path(tempfile.mkdtemp(dir=self.run, prefix=".batches-"))
        if count := self._write(windows, batches, clerk):
            with _told(stop, batches / STOP), _unwrapped():
                for _done in self._explained(count, batches).iter_batches(batch_size=None, prefetch_batches=0):
                    clerk.advance()
        shutil.rmtree(batches, ignore_errors=True)
        self.batches = None

    def close(self) -> None:
        """Stop the cluster if it is ours. After an interruption, draft a record for every current row.

        Actors on a foreign cluster may still be running when this returns, so nothing is recorded about their rows.
        """
        if self.own:
            actors = [child for child in psutil.Process().children(recursive=True) if _is_actor(child)]
            self.ray.shutdown()
            _, alive = psutil.wait_procs(actors, timeout=PATIENCE)
            if self.batches is not None and not alive:
                draft_begun(self.batches, self.run, self.recipe, signed_by=self.signed_by)
        if self.batches is not None:
            shutil.rmtree(self.batches, ignore_errors=True)

    def _connect(self) -> None:
        handler = signal.getsignal(signal.SIGTERM)
        quiet = {"log_to_driver": False, "logging_level": "error"}
        if "RAY_ADDRESS" in os.environ:
            self.ray.init(**quiet)
        else:
            actors = self.workers * self.recipe.workers.cpus
            self.ray.init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, int(actors) + 1),  # one more, so that reading is never blocked
                include_dashboard=False,
                object_store_memory=OBJECT_STORE,
                **quiet,
            )
            self.own = True
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray installs its own

    def _write(self, windows: Iterable[Window], batches: Path, clerk: RunWriter) -> int:
        """Write one Parquet file per batch, the most expensive of each window first; return their number."""
        count = 0
        for window in windows:
            clerk.expect(window)
            clerk.advance()
            jobs = [job for job in window.jobs if job.index in window.to_do]
            for batch in pack(jobs, budget=self.recipe.workers.token_budget, workers=self.workers):
                pq.write_table(pa.table({"job": [job.to_json() for job in batch]}), _file(batches, count))
                count += 1
        return count

    def _explained(self, count: int, batches: Path) -> Any:
        data = self.ray.data
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        return data.range(count, override_num_blocks=count).map_batches(
            Explainer,
            batch_size=None,
            compute=data.ActorPoolStrategy(size=min(self.workers, count), max_tasks_in_flight_per_actor=2),
            num_cpus=self.recipe.workers.cpus,
            num_gpus=self.gpus,
            fn_constructor_kwargs={
                "recipe": self.recipe.model_dump_json(),
                "run": str(self.run),
                "batches": str(batches),
                "signed_by": self.signed_by,
                "home": os.getcwd(),
            },
        )


class Explainer:
    """An actor with its model, loaded once."""

    def __init__(self, recipe: str, run: str, batches: str, signed_by: str | None, home: str) -> None:
        read = Recipe.model_validate_json(recipe)
        _at_home(home)
        self.worker = Worker.of(load_for(read.model, Processes()), read, run=Path(run), signed_by=signed_by)
        self.ledger, self.batches = Ledger(Path(run)), Path(batches)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Process the rows of these batches that are neither prepared nor done; return the ids of all that are."""
        done = []
        tables = [pq.read_table(_file(self.batches, int(n))) for n in batch["id"]]
        for job in [Job.from_json(text) for table in tables for text in table["job"].to_pylist()]:
            if not self.ledger.has(job.row.id, key=job.key, attempt=job.record):
                if (self.batches / STOP).exists():
                    break
                self.worker.do(self._begun(job))
            done.append(job.row.id)
        return {"done": np.array(done, dtype=object)}

    def _begun(self, job: Job) -> Job:
        """The job; if the row kills its worker each time, a job that fails instead."""
        marks = self.batches / f"{job.row.id}.begun"
        with marks.open("a", encoding="utf-8") as stream:
            stream.write(f"{utc_now()} {job.to_json()}\n")
        if len(marks.read_text(encoding="utf-8").splitlines()) <= DEATHS:
            return job
        told = f"Its worker died {DEATHS} times while computing it (out of memory?)."
        return replace(job, row=FailedRow(job.row.id, job.row.source, told))


def draft_begun(batches: Path, run: Path, recipe: Recipe, *, signed_by: str | None) -> None:
    """Draft a record for every row that was started but is neither prepared nor done."""
    ledger = Ledger(run)
    for marks in sorted(batches.glob("*.begun")):
        told = marks.read_text(encoding="utf-8")
        if not told.endswith("\n"):  # its actor did not reach the row
            continue
        started, _, text = told.splitlines()[-1].partition(" ")
        job = Job.from_json(text)
        if ledger.has(job.row.id, key=job.key, attempt=job.record):
            continue
        purpose = f"recipe {recipe.name}, row {job.row.id}"
        with (
            suppress(KeyboardInterrupt),
            drafting(run / EVIDENCE, id=job.record, entry="recipe", purpose=purpose, signed_by=signed_by) as attempt,
        ):
            attempt.started = started
            if isinstance(job.row, Row):
                attempt.request = request_of(job.row)
            raise KeyboardInterrupt("Ray was stopped while an actor computed this row.")
        if attempt.draft is not None:
            ledger.abort(job.row.id, attempt.draft)


def _is_actor(process: psutil.Process) -> bool:
    try:
        return Explainer.__name__ in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _file(batches: Path, n: int) -> Path:
    return batches / f"{n:07d}.parquet"


def _look(recipe: str, home: str) -> EngineInfo:
    """In a task with the actors' resources: the digest of the weights, and the tokenizer that counts costs."""
    _at_home(home)
    return site_of(load_for(Recipe.model_validate_json(recipe).model, Processes()))


def _at_home(home: str) -> None:
    """Relative model names refer to the folder where the run was started, if it exists on this node."""
    if Path(home).is_dir():
        os.chdir(home)


def _ray() -> Any:
    try:
        import ray.data
    except ImportError as error:
        raise OptionError(
            f"--engine ray needs Ray Data, which is not installed ({error}): pip install 'llmxai[ray]'."
        ) from error
    for name in ("ray.data", "ray._private.worker"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return ray


@contextmanager
def _unwrapped() -> Iterator[None]:
    """Raise our own errors from inside a task without Ray's wrapping."""
    try:
        yield
    except Exception as error:
        inner: BaseException | None = error
        while inner is not None:
            cause = getattr(inner, "cause", None) or inner.__cause__
            if isinstance(cause, LlmxaiError):
                raise cause from None
            inner = cause
        raise


@contextmanager
def _told(stop: Stop, file: Path) -> Iterator[None]:
    """Create `file` as soon as `stop` says so; the actors look for it before every row."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(POLL * 4):
            if stop():
                file.touch()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
