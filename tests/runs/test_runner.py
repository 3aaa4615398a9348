"""What a run leaves behind, what it does again and what not, and whose folders it leaves alone."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from settings import FAILS, N, make_recipe
from settings import records_of as row_records

from llmxai.commands.console import _words
from llmxai.errors import ModelLoadError, OutputError
from llmxai.evaluation import Row
from llmxai.evidence import Draft, EvidenceLog, open_log, verify
from llmxai.evidence.provenance import provenance_of, records_of
from llmxai.evidence.verifier.folder import LOG
from llmxai.names import CURRENT
from llmxai.report import rebuild
from llmxai.runs import RunOutcome, RunProgress, run_recipe
from llmxai.runs import ledger as ledger_module
from llmxai.runs import results as results_module
from llmxai.runs import runner as runner_module
from llmxai.runs import worker as work_module
from llmxai.runs.ledger import Ledger, write_json
from llmxai.runs.results import best_of
from llmxai.runs.scheduling import Job, Window
from llmxai.runs.tables import tabulate
from llmxai.runs.writer import RunWriter
from llmxai.store import read_folder


@pytest.fixture(scope="module")
def finished(whole: Path) -> Path:
    return whole


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run of one's own."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def again(
    model_folder: Path, out: Path, data: Path, *, changes: dict[str, Any] | None = None, **how: Any
) -> RunOutcome:
    return run_recipe(make_recipe(model_folder, **(changes or {})), out, root=data, **how)


def worked_on(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the rows that get done from now on."""
    done: list[str] = []
    real = work_module.Worker.do

    def do(self: Any, job: Job) -> None:
        done.append(job.row.id)
        real(self, job)

    monkeypatch.setattr(work_module.Worker, "do", do)
    return done


def test_what_a_run_leaves(finished: Path) -> None:
    rows = pq.read_table(finished / "rows.parquet").to_pylist()
    assert [row["id"] for row in rows] == [f"cities-{i:05d}" for i in range(N)]
    assert [row["status"] for row in rows] == ["failed" if i == FAILS else "ok" for i in range(N)]
    good, bad = rows[0], rows[FAILS]
    assert (good["prompt"], good["answer"]) == ("The city of person 0 is", " Paris")
    assert sum(good[str(status)] for status in CURRENT) == good["n_targets"] > 0
    assert not {"agree", "diluted", "disagree", "unchecked"} & good.keys()
    assert good["worst_gap_ratio"] >= 0
    assert good["target_f"] < 0
    assert good["metric.saliency.mrr"] > 0
    assert "empty" in bad["error"]
    assert bad["n_targets"] is None
    record = finished / "records" / "cities-00000"
    assert {path.name for path in record.iterdir()} == {"explanation.json", "maps.safetensors", "report.html"}
    assert not (finished / "records" / f"cities-{FAILS:05d}").exists()


def test_the_manifest(finished: Path, model_folder: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["schema"] == "llmxai.run/1"
    assert manifest["rows"] == {"ok": N - 1, "failed": 1}
    assert manifest["recipe"] == make_recipe(model_folder).model_dump(mode="json")
    assert manifest["environment"]["model"]["digest"]
    for name, told in manifest["files"].items():
        content = (finished / name).read_bytes()
        assert told == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_measures_have_the_controls_and_say_who_gave_none(finished: Path) -> None:
    lines = pq.read_table(finished / "measures.parquet").to_pylist()
    methods = {line["method"] for line in lines}
    assert methods == {"saliency", "deep_lift", "random", "recency", "leave_one_out"}
    refused = [line for line in lines if line["method"] == "deep_lift"]
    assert len(refused) == N - 1
    assert all(line["figure"] is None and "no rule" in line["error"] for line in refused)


def test_tables_and_pages(finished: Path) -> None:
    figures = list(csv.DictReader((finished / "tables" / "figures.csv").read_text().splitlines()))
    (mine,) = [line for line in figures if (line["method"], line["figure"]) == ("saliency", "mrr")]
    rows = pq.read_table(finished / "rows.parquet").to_pylist()
    values = [row["metric.saliency.mrr"] for row in rows if row["metric.saliency.mrr"] is not None]
    others = [row["metric.leave_one_out.mrr"] for row in rows if row["metric.leave_one_out.mrr"] is not None]
    assert float(mine["mean"]) == pytest.approx(sum(values) / len(values))
    assert float(mine["minus_leave_one_out"]) == pytest.approx((sum(values) - sum(others)) / len(values))
    assert float(mine["low"]) <= float(mine["mean"]) <= float(mine["high"])
    table = [line.split(" | ") for line in (finished / "tables" / "summary.md").read_text().splitlines() if "|" in line]
    (told,) = [line for line in table if line[0] == "| saliency"]
    interval = f"({float(mine['low']):.2f} to {float(mine['high']):.2f})"
    assert told[table[0].index("mrr")] == f"{float(mine['mean']):.2f} {interval}"
    assert len({len(line) for line in table}) == 1
    page = (finished / "evaluation.html").read_text()
    assert "Removal operator: delete" in page
    assert "Captum&#39;s DeepLIFT has no rule" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert (finished / "plots" / "mrr.svg").read_text().startswith("<svg")
    index = (finished / "index.html").read_text()
    assert "records/cities-00000/report.html" in index
    assert 'href="evaluation.html"' in index


def test_the_index_and_the_pages_lead_to_each_other_and_to_the_evidence(finished: Path) -> None:
    before = (finished / "index.html").read_text(encoding="utf-8")
    folders = list((finished / "records").iterdir())
    assert folders
    for folder in folders:
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert 'href="../../index.html"' in page
        assert f'href="records/{folder.name}/report.html"' in before
        assert records_of(finished)[folder.name] in before
        assert records_of(finished)[folder.name] in page
    rebuild(finished, provenance=provenance_of, records=records_of)
    assert (finished / "index.html").read_text(encoding="utf-8") == before
    assert not list(finished.rglob("report.rebuilt.html"))  # the same pages to the byte, so the log holds for them


def test_nothing_is_done_twice(run: Path, data: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (run / "rows.parquet").read_bytes()
    done = worked_on(monkeypatch)
    outcome = again(model_folder, run, data)
    assert done == []
    assert (outcome.ok, outcome.failed) == (N - 1, 1)
    assert (run / "rows.parquet").read_bytes() == before


def test_what_is_missing_or_half_written_is_done(
    run: Path, data: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    its_own = ["seconds", "record", "explanation_sha256"]
    before = pq.read_table(run / "rows.parquet").drop_columns(its_own)
    (run / "ledger" / "cities-00001.json").unlink()
    (run / "ledger" / "cities-00002.json").write_text('{"schema": "llmxai.row/1", "key"')
    (run / "records" / "cities-00002" / "maps.safetensors").write_bytes(b"half")
    (run / "records" / ".cities-00003-x").mkdir()
    done = worked_on(monkeypatch)
    again(model_folder, run, data)
    assert done == ["cities-00001", "cities-00002"]
    assert pq.read_table(run / "rows.parquet").drop_columns(its_own).equals(before)
    assert not (run / "records" / ".cities-00003-x").exists()


def test_changed_input_and_changed_weights_are_done_again(
    run: Path, data: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (data / "cities.jsonl").read_text().splitlines()
    other = tmp_path / "data"
    other.mkdir()
    (other / "cities.jsonl").write_text("\n".join([lines[0].replace("Paris", "Rome"), *lines[1:]]) + "\n")
    done = worked_on(monkeypatch)
    again(model_folder, run, other)
    assert done == ["cities-00000"]
    assert pq.read_table(run / "rows.parquet")["answer"][0].as_py() == " Rome"
    monkeypatch.setattr("llmxai.runs.engines.weights_digest", lambda _loaded: "other weights")
    done.clear()
    again(model_folder, run, other)
    assert len(done) == N


def test_a_limit_may_change_and_what_is_beyond_it_stays_evidence(run: Path, data: Path, model_folder: Path) -> None:
    recipe = make_recipe(model_folder)
    shorter = [{**recipe.data[0].model_dump(), "limit": 3}]
    outcome = again(model_folder, run, data, changes={"data": shorter})
    assert (outcome.ok, outcome.failed) == (3, 0)
    assert pq.read_table(run / "rows.parquet").num_rows == 3
    assert len(list((run / "records").iterdir())) == N - 1
    assert verify(run).findings == []


def test_failed_rows_are_done_again_only_when_asked(
    run: Path, data: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = worked_on(monkeypatch)
    again(model_folder, run, data, retry_failed=True)
    assert done == [f"cities-{FAILS:05d}"]


def test_a_bug_in_one_row_is_that_rows_failure(
    data: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = work_module.explain

    def explain(model: Any, prompt: str, **how: Any) -> Any:
        if "person 1" in prompt:
            raise ZeroDivisionError("no such thing")
        return real(model, prompt, **how)

    monkeypatch.setattr(work_module, "explain", explain)
    recipe = make_recipe(model_folder, evaluate=None)
    outcome = run_recipe(recipe, tmp_path / "run", root=data)
    assert (outcome.ok, outcome.failed) == (N - 2, 2)
    rows = pq.read_table(tmp_path / "run" / "rows.parquet").to_pylist()
    assert rows[1]["error"] == "ZeroDivisionError: no such thing"
    assert not (tmp_path / "run" / "evaluation.html").exists()


def test_every_row_leaves_evidence_in_order(finished: Path) -> None:
    lines = (finished / "evidence" / LOG).read_text().splitlines()
    records = [record for line in lines if (record := json.loads(line)["record"])["entry"] == "recipe"]
    assert [record["purpose"] for record in records] == [f"recipe tiny, row cities-{i:05d}" for i in range(N)]
    assert [record["kind"] for record in records] == ["refusal" if i == FAILS else "explanation" for i in range(N)]
    assert verify(finished).exit != 1


def unfinished(run: Path, row_id: str) -> tuple[Path, Path]:
    """Put the row back to prepared, as a kill before the ledger's entry leaves it."""
    done = run / "ledger" / f"{row_id}.json"
    entry = {name: value for name, value in json.loads(done.read_text()).items() if name != "schema"}
    records = row_records(run)
    (record,) = [each for each in records if each["id"] == entry["record"]]
    record.pop("chain")
    Ledger(run).prepare(row_id, entry, Draft.from_json({"record": record, "texts": {"input": "as it was"}}))
    done.unlink()
    return done, done.with_suffix(".prepared")


def test_a_row_whose_evidence_is_in_the_log_is_taken_as_it_is(
    run: Path, data: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, prepared = unfinished(run, "cities-00001")
    before, recorded = (run / "records" / "cities-00001" / "explanation.json").read_bytes(), row_records(run)
    worked = worked_on(monkeypatch)
    again(model_folder, run, data)
    assert worked == []
    assert done.exists()
    assert not prepared.exists()
    assert (run / "records" / "cities-00001" / "explanation.json").read_bytes() == before
    assert row_records(run) == recorded, "nothing is recorded twice"


def test_what_was_prepared_is_recorded_and_not_done_again(
    data: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the work and before the record."""
    recipe = make_recipe(model_folder, evaluate=None)
    monkeypatch.setattr(RunWriter, "advance", stops_after(RunWriter.advance, times=3))
    with pytest.raises(ZeroDivisionError):
        run_recipe(recipe, tmp_path / "run", root=data)
    assert [path.name for path in (tmp_path / "run" / "ledger").glob("*.prepared")] == ["cities-00002.prepared"]
    monkeypatch.undo()
    worked = worked_on(monkeypatch)
    run_recipe(recipe, tmp_path / "run", root=data)
    assert worked == [f"cities-{i:05d}" for i in range(3, N)]
    purposes = [record["purpose"] for record in row_records(tmp_path / "run")]
    assert purposes == [f"recipe tiny, row cities-{i:05d}" for i in range(N)]
    assert verify(tmp_path / "run").findings == []


def stops_after(advance: Callable[[RunWriter], None], *, times: int) -> Callable[[RunWriter], None]:
    calls = 0

    def wrapped(clerk: RunWriter) -> None:
        nonlocal calls
        calls += 1
        if calls > times:
            raise ZeroDivisionError
        advance(clerk)

    return wrapped


def test_an_interrupted_row_is_recorded_and_done_by_the_next_call(
    data: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = work_module.explain

    def explain(model: Any, prompt: str, **how: Any) -> Any:
        if "person 1" in prompt:
            raise KeyboardInterrupt
        return real(model, prompt, **how)

    monkeypatch.setattr(work_module, "explain", explain)
    recipe = make_recipe(model_folder, evaluate=None)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, tmp_path / "run", root=data)
    records = row_records(tmp_path / "run")
    assert [record["kind"] for record in records] == ["explanation", "failure"]
    assert records[1]["error"] == {"type": "KeyboardInterrupt", "interrupted": True}
    assert verify(tmp_path / "run").findings == []
    monkeypatch.setattr(work_module, "explain", real)
    assert run_recipe(recipe, tmp_path / "run", root=data).ok == N - 1
    again = row_records(tmp_path / "run")[2]
    assert again["purpose"] == records[1]["purpose"]
    assert again["id"] != records[1]["id"]


def test_asked_to_stop_it_ends_after_the_row_in_hand(data: Path, model_folder: Path, tmp_path: Path) -> None:
    recipe, rows = make_recipe(model_folder, evaluate=None), list[int]()
    outcome = run_recipe(
        recipe,
        tmp_path / "run",
        root=data,
        progress=lambda news: rows.append(news.rows),
        stop=lambda: bool(rows) and rows[-1] == 2,
    )
    assert (outcome.ok, outcome.failed, outcome.stopped) == (2, 0, True)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "stopped"
    assert len(row_records(tmp_path / "run")) == 2
    assert not run_recipe(recipe, tmp_path / "run", root=data).stopped


def test_a_row_that_fails_when_done_again_loses_its_files_and_the_log_says_so(
    run: Path, data: Path, model_folder: Path, tmp_path: Path
) -> None:
    lines = (data / "cities.jsonl").read_text().splitlines()
    lines[0] = json.dumps({"name": "person 0", "city": ""})
    (tmp_path / "cities.jsonl").write_text("\n".join(lines) + "\n")
    assert again(model_folder, run, tmp_path).failed == 2
    assert not (run / "records" / "cities-00000").exists()
    last = row_records(run)[-1]
    assert (last["kind"], last["link"]["reason"]) == ("prune", "the row was done again and failed")
    assert verify(run).exit == 0


def test_a_model_that_cannot_be_loaded_is_a_recorded_refusal(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError):
        run_recipe(make_recipe(tmp_path / "nowhere"), tmp_path / "run", root=data)
    (record,) = row_records(tmp_path / "run")
    assert (record["kind"], record["error"]["type"]) == ("refusal", "ModelLoadError")


def test_the_log_is_read_once_however_many_rows(
    data: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening a log reads all of it: once a row would be quadratic."""
    opened = []
    real = runner_module.open_log
    monkeypatch.setattr(runner_module, "open_log", lambda *of, **how: opened.append(of) or real(*of, **how))
    monkeypatch.setattr("llmxai.evidence.recorder.open_log", lambda *_of, **_how: pytest.fail("opened for one record"))
    run_recipe(make_recipe(model_folder, evaluate=None), tmp_path / "run", root=data)
    assert len(opened) == 1
    points = (tmp_path / "run" / "evidence" / "checkpoints.jsonl").read_text().splitlines()
    assert len(points) == 1, "one checkpoint, at the end"


def test_memory_that_ran_out_is_in_the_table_and_the_record(
    data: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The halving itself is that of the methods (tests/methods)."""
    real = work_module.explain

    def explain(*what: Any, **how: Any) -> Any:
        found = real(*what, **how)
        return replace(found, computed={**found.computed, "chunk_halvings": 2})

    monkeypatch.setattr(work_module, "explain", explain)
    one = [{**make_recipe(model_folder).data[0].model_dump(), "limit": 1}]
    run_recipe(make_recipe(model_folder, evaluate=None, data=one), tmp_path / "run", root=data)
    (row,) = pq.read_table(tmp_path / "run" / "rows.parquet").to_pylist()
    assert (row["status"], row["oom_halvings"]) == ("ok", 2)
    (record,) = row_records(tmp_path / "run")
    assert record["method"]["settings"]["chunk_halvings"] == 2


def test_a_row_that_never_fits_is_that_rows_failure(
    data: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explain(*_what: Any, **_how: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(work_module, "explain", explain)
    assert run_recipe(make_recipe(model_folder, evaluate=None), tmp_path / "run", root=data).failed == N


def test_progress_counts_rows(data: Path, model_folder: Path, tmp_path: Path) -> None:
    told: list[RunProgress] = []
    recipe = make_recipe(model_folder, evaluate=None)
    limited = [{**recipe.data[0].model_dump(), "limit": 2}]
    run_recipe(
        make_recipe(model_folder, evaluate=None, data=limited),
        tmp_path / "run",
        root=data,
        progress=told.append,
    )
    rows = [news for news in told if news.stage == "rows"]
    assert [(news.rows, news.total, news.failed, news.fresh) for news in rows] == [(1, 2, 0, 1), (2, 2, 0, 2)]
    assert rows[1].tokens > rows[0].tokens > rows[0].targets > 0


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"rows": 5, "total": 30, "fresh": 5, "tokens": 374, "targets": 10, "seconds": 160.0},
         "engine local, 32.0 s/row, 374 tokens, 16.0 s/target, 0 failed, 0:13:20 left"),
        ({"rows": 50, "fresh": 40, "tokens": 374, "targets": 80, "seconds": 16.0, "failed": 2, "engine": "ray"},
         "engine ray, 2.5 rows/s, 374 tokens, 5.0 targets/s, 2 failed"),
        ({"rows": 1, "total": 2, "fresh": 1, "tokens": 9, "seconds": 2.0, "failed": 1},
         "engine local, 2.0 s/row, 9 tokens, 1 failed, 0:00:02 left"),
        ({"rows": 7, "total": 9}, "engine local, 0 failed"),
    ],
)  # fmt: skip
def test_progress_in_words(figures: dict[str, Any], words: str) -> None:
    assert _words(RunProgress("rows", **figures)) == words


def test_a_rows_foil_is_explained_as_it_is_evaluated(data: Path, model_folder: Path, tmp_path: Path) -> None:
    recipe = make_recipe(model_folder)
    limited = [{**recipe.data[0].model_dump(), "limit": 2, "foil": " Berlin"}]
    outcome = run_recipe(make_recipe(model_folder, data=limited), tmp_path / "run", root=data)
    assert (outcome.ok, outcome.failed) == (2, 0)
    table = pq.read_table(tmp_path / "run" / "rows.parquet").to_pylist()
    for row in table:
        document, _ = read_folder(tmp_path / "run" / "records" / row["id"])
        first = document["targets"][0]
        assert first["foil"]["text"].startswith(" ")
        assert first["f_input"] == pytest.approx(row["target_f"], abs=1e-4)
        assert document["generation"]["request"]["foil"] == " Berlin"


def test_folders_that_are_left_alone(run: Path, data: Path, model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"holds a run of recipe 'tiny' with another explain"):
        again(model_folder, run, data, changes={"explain": {"gradients": {"max_nodes": 32}}})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match=r"holds 'thesis.txt' and no run, so it is left alone"):
        again(model_folder, tmp_path / "mine", data)
    with pytest.raises(OutputError, match="is a file"):
        again(model_folder, tmp_path / "mine" / "thesis.txt", data)
    with (run / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another run is using it"):
            again(model_folder, run, data)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"b": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_tables_are_the_same_in_whatever_groups_they_are_written(
    finished: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "GROUP", 2)
    entries = [json.loads(path.read_text()) for path in sorted((finished / "ledger").glob("*.json"))]
    results_module.write_results(tmp_path, make_recipe(model_folder), lambda: iter(entries))
    for name in ("rows.parquet", "measures.parquet"):
        found, wanted = pq.ParquetFile(tmp_path / name), pq.ParquetFile(finished / name)
        assert found.metadata.num_row_groups > wanted.metadata.num_row_groups == 1
        assert found.read().equals(wanted.read())
    for name in ("tables/figures.csv", "tables/cost.csv", "evaluation.html"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()


def test_rows_that_are_ready_together_are_entered_together(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One append for all up to a row that failed; log and ledger become what they become one by one."""
    groups: list[int] = []
    real = EvidenceLog.append_many

    def append_many(log: EvidenceLog, records: Any, **how: Any) -> Any:
        some = list(records)
        groups.append(len(some))
        return real(log, some, **how)

    monkeypatch.setattr(EvidenceLog, "append_many", append_many)
    ledger, jobs, told = Ledger(tmp_path), [], list[int]()
    for i, record in enumerate(row_records(finished)):
        name = f"cities-{i:05d}"
        entry = {key: value for key, value in (Ledger(finished).read(name) or {}).items() if key != "schema"}
        body = {key: value for key, value in record.items() if key != "chain"}
        ledger.prepare(name, entry, Draft.from_json({"record": body, "texts": {"input": "x"}}))
        jobs.append(Job(i, Row(name, "s", prompt="x"), entry["key"], body["id"], 1, 1))
    with open_log(tmp_path / "evidence") as log:
        clerk = RunWriter(log, ledger, news=RunProgress("rows"), progress=lambda news: told.append(news.rows))
        clerk.expect(Window(tuple(jobs), frozenset(range(N))))
        clerk.advance()
        assert not clerk.waits
    assert groups == [FAILS + 1, N - FAILS - 1]
    assert told == list(range(1, N + 1))
    assert [record["id"] for record in row_records(tmp_path)] == [record["id"] for record in row_records(finished)]
    names = sorted(path.name for path in (finished / "ledger").iterdir())
    assert sorted(path.name for path in ledger.folder.iterdir()) == names
    for name in names:
        assert (ledger.folder / name).read_bytes() == (finished / "ledger" / name).read_bytes()


@pytest.mark.parametrize(
    ("means", "best"),
    [([1.0, 0.5, 0.2], {"a"}), ([0.5, 0.5, 0.2], {"a", "b"}), ([0.0, 0.0, 0.0], set()), ([0.2, 0.3, 0.1], {"b"})],
)
def test_the_best_are_marked_and_none_where_all_are_alike(means: list[float], best: set[str]) -> None:
    lines = [
        {"id": "1", "source": "s", "method": name, "figure": figure, "value": sign * value}
        | {"seconds": 1.0, "nodes": None, "converged": None, "error": ""}
        for name, value in zip("abc", means, strict=True)
        for figure, sign in (("mrr", 1), ("sufficiency", -1))
    ]
    found = tabulate(lines, resamples=10, seed=0)
    assert {figure: best_of(found, "s", figure) for figure in found.figures} == {"mrr": best, "sufficiency": best}
