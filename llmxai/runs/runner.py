"""Run a recipe into a folder, row by row; the same command resumes a run that was killed at any moment."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from llmxai.evaluation import Row
from llmxai.evidence import Vouching, begin, open_log, signing_key
from llmxai.evidence.files import describe
from llmxai.evidence.keys import key_id
from llmxai.evidence.log import read_known
from llmxai.evidence.provenance import provenance_of, records_of, reviews_of
from llmxai.evidence.recorder import ended_by
from llmxai.report import write_index
from llmxai.runs.data import FailedRow, count_rows, recipe_rows
from llmxai.runs.engines import Engine, EngineInfo, EngineName, TeamEngine, is_of_this_model, run_lock
from llmxai.runs.ledger import Ledger, key_of, write_json
from llmxai.runs.recipe import Recipe
from llmxai.runs.results import write_results
from llmxai.runs.scheduling import Plan, Processes, Stop, processes
from llmxai.runs.worker import EVIDENCE
from llmxai.runs.writer import Progress, RunProgress, RunWriter

SCHEMA = "llmxai.run/1"


@dataclass(frozen=True)
class RunOutcome:
    """The result of a run."""

    folder: Path
    ok: int
    failed: int
    leads: bool
    """Whether this is the process (of several) that reports for all."""
    stopped: bool = False
    """Whether it was stopped before its end; the same call resumes."""


def run_recipe(
    recipe: Recipe,
    out: Path | str,
    *,
    root: Path | str = ".",
    engine: EngineName = "local",
    workers: int | None = None,
    retry_failed: bool = False,
    command: str | None = None,
    progress: Progress = lambda _news: None,
    stop: Stop = lambda: False,
) -> RunOutcome:
    """Run `recipe` into the folder `out` (docs/recipes.md lists its contents), resuming where an earlier call stopped.

    `root`: the folder that the data's relative paths refer to. `engine`: docs/scale.md. `workers`: actors of Ray, by
    default the recipe's. Failed rows stay failed unless `retry_failed`. `command`: the command line, for the manifest.
    `stop` is called before every row; once it returns True, the current rows finish and no more start.

    >>> run_recipe(read_recipe("recipes/smoke.yaml"), Path("runs/smoke"), root=Path("recipes"))

    Raises RecipeError, ModelLoadError and OutputError before the first row; an error in a single row becomes that row's
    record.
    """
    out, team = Path(out), processes()
    ledger, ids = Ledger(out), list[str]()
    with run_lock(out, recipe, team):
        signer = signing_key() if team.leads else None
        ledger.marked = team.leads
        news = RunProgress("rows", engine=engine, total=count_rows(recipe))
        with _clerk(out, ledger, signer, news, progress) if team.leads else nullcontext() as clerk:
            team.wait()
            with _engine(engine, recipe, out, team, workers) as computing:
                with _recorded_refusal(clerk, recipe):
                    site = computing.start(progress)
                manifest = _manifest(recipe, site, engine=engine, command=command)
                older = is_of_this_model(out, site.environment)
                team.wait()
                if team.leads:
                    write_json(out / "manifest.json", {**manifest, "status": "running"})
                ledger.known = read_known(out) if clerk is None else clerk.log.known
                known = ledger.known.ids
                plan = Plan(recipe, site.model, site.tokenizer, ledger, known, retry_failed, site.identity, older)
                rows = _noted(recipe_rows(recipe, root=Path(root)), ids)
                computing.perform(plan.windows(rows, workers=computing.workers), clerk, stop)
                team.wait()
            outcome = _outcome(out, ledger, ids, leads=team.leads, stopped=stop())
            if clerk is not None:
                ledger.require_run()
                if not outcome.stopped:
                    progress(replace(news, stage="writing tables", rows=len(ids), total=len(ids)))
                    write_results(out, recipe, lambda: filter(None, map(ledger.read, ids)))
                write_json(out / "manifest.json", manifest | _ending(out, outcome))
                if not outcome.stopped:  # the index shows the manifest, so it is written last
                    box = provenance_of(out, keyid=None if signer is None else key_id(signer.public_key()))
                    write_index(out, provenance=box, records=records_of(out), reviews=reviews_of(out))
        team.wait()
    return outcome


@contextmanager
def _engine(name: EngineName, recipe: Recipe, out: Path, team: Processes, workers: int | None) -> Iterator[Engine]:
    signer = signing_key()
    signed_by = None if signer is None else key_id(signer.public_key())
    engine: Engine
    if name == "ray":
        from llmxai.runs.cluster import RayEngine

        engine = RayEngine(recipe, out, workers=workers, signed_by=signed_by)
    else:
        engine = TeamEngine(recipe, out, team, name=name, signed_by=signed_by)
    try:
        yield engine
    finally:
        engine.close()


@contextmanager
def _clerk(
    out: Path,
    ledger: Ledger,
    signer: Ed25519PrivateKey | None,
    news: RunProgress,
    progress: Progress,
) -> Iterator[RunWriter]:
    """The single writer. However the run ends, prepared and interrupted rows are in the log, and the run's files in its
    manifest, before it is closed and signed."""
    with open_log(out / EVIDENCE, signer=signer) as log:
        clerk, files = RunWriter(log, ledger, news=news, progress=progress), Vouching(log)
        files.changing()
        clerk.take_aborted()
        try:
            yield clerk
        finally:
            clerk.advance()
            clerk.take_aborted()
            files.close()


@contextmanager
def _recorded_refusal(clerk: RunWriter | None, recipe: Recipe) -> Iterator[None]:
    """Record errors before the first row too."""
    attempt = None
    if clerk is not None:
        attempt = begin(clerk.log, entry="recipe", purpose=f"recipe {recipe.name}, before its rows")
    try:
        yield
    except BaseException as error:
        if attempt is not None:
            attempt.keep(*ended_by(error, attempt))
        raise


def _noted(rows: Iterable[Row | FailedRow], ids: list[str]) -> Iterator[Row | FailedRow]:
    """The rows, whose ids are collected as they pass."""
    for row in rows:
        ids.append(row.id)
        yield row


def _outcome(out: Path, ledger: Ledger, ids: list[str], *, leads: bool, stopped: bool) -> RunOutcome:
    statuses = [entry["status"] for row_id in ids if (entry := ledger.read(row_id)) is not None]
    ok = statuses.count("ok")
    return RunOutcome(out, ok=ok, failed=len(statuses) - ok, leads=leads, stopped=stopped)


def _manifest(recipe: Recipe, site: EngineInfo, *, engine: EngineName, command: str | None) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "engine": engine,
        "recipe": recipe.model_dump(mode="json"),
        "recipe_digest": key_of(recipe=recipe.model_dump(mode="json")),
        "environment": site.environment,
    }


def _ending(out: Path, outcome: RunOutcome) -> dict[str, Any]:
    files = sorted(path for path in out.glob("*.parquet"))
    return {
        "status": "stopped" if outcome.stopped else "finished",
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": {"ok": outcome.ok, "failed": outcome.failed},
        "files": {
            each.path: {"bytes": each.bytes, "sha256": each.sha256}
            for each in (describe(path, base=out) for path in files)
        },
    }
