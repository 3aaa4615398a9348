"""What a run leaves behind, what it does again and what not, and whose folders it leaves alone."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from settings import FAILS, N, make_data, make_recipe

from llmxai.errors import OutputError
from llmxai.evidence import verify
from llmxai.evidence.verifier.folder import LOG
from llmxai.runs import RunOutcome, run_recipe
from llmxai.runs import work as work_module
from llmxai.runs.ledger import Ledger, write_json


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


@pytest.fixture(scope="module")
def finished(data: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "finished"
    run_recipe(make_recipe(model_folder), out, root=data)
    return out


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

    def do(self: Any, row: Any, *, key: str, run: Path, ledger: Ledger) -> None:
        done.append(row.id)
        real(self, row, key=key, run=run, ledger=ledger)

    monkeypatch.setattr(work_module.Worker, "do", do)
    return done


def test_what_a_run_leaves(finished: Path) -> None:
    rows = pq.read_table(finished / "rows.parquet").to_pylist()
    assert [row["id"] for row in rows] == [f"cities-{i:05d}" for i in range(N)]
    assert [row["status"] for row in rows] == ["failed" if i == FAILS else "ok" for i in range(N)]
    good, bad = rows[0], rows[FAILS]
    assert (good["prompt"], good["answer"]) == ("The city of person 0 is", " Paris")
    assert good["agree"] + good["diluted"] + good["disagree"] + good["unconverged"] == good["n_targets"] > 0
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
    page = (finished / "evaluation.html").read_text()
    assert "Removal operator: delete" in page
    assert "Captum&#39;s DeepLIFT has no rule" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert (finished / "plots" / "mrr.svg").read_text().startswith("<svg")
    index = (finished / "index.html").read_text()
    assert "records/cities-00000/report.html" in index
    assert 'href="evaluation.html"' in index


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
    before = pq.read_table(run / "rows.parquet").drop_columns("seconds")
    (run / "ledger" / "cities-00001.json").unlink()
    (run / "ledger" / "cities-00002.json").write_text('{"schema": "llmxai.row/1", "key"')
    (run / "records" / "cities-00002" / "maps.safetensors").write_bytes(b"half")
    (run / "records" / ".cities-00003-x").mkdir()
    done = worked_on(monkeypatch)
    again(model_folder, run, data)
    assert done == ["cities-00001", "cities-00002"]
    assert pq.read_table(run / "rows.parquet").drop_columns("seconds").equals(before)
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
    monkeypatch.setattr("llmxai.runs.runner.weights_digest", lambda _loaded: "other weights")
    done.clear()
    again(model_folder, run, other)
    assert len(done) == N


def test_a_limit_may_change_and_what_is_beyond_it_goes(run: Path, data: Path, model_folder: Path) -> None:
    recipe = make_recipe(model_folder)
    shorter = [{**recipe.data[0].model_dump(), "limit": 3}]
    outcome = again(model_folder, run, data, changes={"data": shorter})
    assert (outcome.ok, outcome.failed) == (3, 0)
    assert sorted(path.name for path in (run / "records").iterdir()) == [f"cities-{i:05d}" for i in range(3)]
    assert pq.read_table(run / "rows.parquet").num_rows == Ledger(run).count() == 3


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


def test_a_row_whose_evidence_is_in_the_log_is_taken_as_it_is(
    run: Path, data: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the record and the ledger: doing the row again would contradict its record."""
    ledger = run / "ledger"
    (ledger / "cities-00001.json").rename(ledger / "cities-00001.prepared")
    before = (run / "records" / "cities-00001" / "explanation.json").read_bytes()
    done = worked_on(monkeypatch)
    again(model_folder, run, data)
    assert done == []
    assert (ledger / "cities-00001.json").exists()
    assert not (ledger / "cities-00001.prepared").exists()
    assert (run / "records" / "cities-00001" / "explanation.json").read_bytes() == before
    # prepared, but never recorded: done again
    (ledger / "cities-00002.json").rename(ledger / "cities-00002.prepared")
    (run / "records" / "cities-00002" / "explanation.json").write_text("half")
    again(model_folder, run, data)
    assert done == ["cities-00002"]


def test_progress_counts_rows(data: Path, model_folder: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    recipe = make_recipe(model_folder, evaluate=None)
    limited = [{**recipe.data[0].model_dump(), "limit": 2}]
    run_recipe(
        make_recipe(model_folder, evaluate=None, data=limited),
        tmp_path / "run",
        root=data,
        progress=lambda *news: told.append(news),
    )
    assert [news for news in told if news[0] == "rows"] == [("rows", 1, 2), ("rows", 2, 2)]


def test_folders_that_are_left_alone(run: Path, data: Path, model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"holds a run of recipe 'tiny' with another explain"):
        again(model_folder, run, data, changes={"explain": {"max_nodes": 32}})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match=r"holds 'thesis.txt' and no run, so it is left alone"):
        again(model_folder, tmp_path / "mine", data)
    with pytest.raises(OutputError, match="is a file"):
        again(model_folder, tmp_path / "mine" / "thesis.txt", data)
    with (run / ".lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another run is at work in it"):
            again(model_folder, run, data)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"b": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
