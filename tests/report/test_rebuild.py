"""Rows, charts, pages made again, tables, PDF and the notebook: what a folder of stored data gives without a model."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmxai.errors import OptionError, OutputError
from llmxai.evidence import verify
from llmxai.report import (
    RunRow,
    build_index,
    build_view,
    export,
    read_rows,
    rebuild,
    render_report,
    summarize,
    to_columns,
    write_page,
)
from llmxai.report.export import find_chromium, write_pdf
from llmxai.report.rows import build_charts, build_intervals
from llmxai.report.visible import plain
from llmxai.store import read_folder
from llmxai.text import csv_cell
from tests.report.run_sample import made_up, write_run, write_sample
from tests.report.sample import chat, hostile, newest, sample

GALLERY = Path(__file__).parents[2] / "tests" / "earlier" / "gallery"


def test_a_row_is_what_the_explanation_says() -> None:
    document, _ = chat()
    row = summarize(document, record="x", seconds=2.0)
    assert (row.id, row.status, row.n_targets, row.seconds) == ("x", "ok", 17, 2.0)
    assert (row.agree, row.diluted, row.disagree, row.unconverged) == (12, 2, 2, 1)
    assert row.prompt == "Write Paris in Arabic, then code."
    assert row.answer.startswith("باريس is Paris.")
    assert "<end>" not in row.answer
    assert row.worst_gap_ratio == pytest.approx(6)
    assert row.median_spearman == 0.62


@pytest.mark.parametrize(("error", "tolerance", "ratio"), [(0.0, 0.0, 0.0), (0.1, 0.0, 1e30), (1.0, 1e-320, 1e30)])
def test_a_row_whose_tolerance_is_zero(error: float, tolerance: float, ratio: float) -> None:
    """With `Tolerance(absolute=0)`, where F does not change along the path."""
    document, _ = sample(["<s>", " a"], [" b"])
    document["targets"][0] |= {"local_error": error, "tolerance": tolerance}
    assert summarize(document, record="x").worst_gap_ratio == ratio


def test_rows_survive_parquet(tmp_path: Path) -> None:
    rows = made_up(30)
    pq.write_table(pa.table(to_columns(rows)), tmp_path / "rows.parquet")
    assert read_rows(tmp_path) == tuple(rows)


def test_columns_that_a_run_lacks_are_empty(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "metric.lds": [float("nan")], "other": [1]}), tmp_path / "rows.parquet")
    assert read_rows(tmp_path) == (RunRow(id="a"),)
    pq.write_table(pa.table({"name": ["a"]}), tmp_path / "rows.parquet")
    with pytest.raises(OutputError, match="no column 'id'"):
        read_rows(tmp_path)
    (tmp_path / "rows.parquet").write_text("no parquet")
    with pytest.raises(OutputError, match="cannot be read as Parquet"):
        read_rows(tmp_path)


def test_an_explanation_is_made_again_byte_for_byte(tmp_path: Path) -> None:
    folder = write_sample(tmp_path / "one", chat())
    done = rebuild(folder)
    assert (done.page, done.pages, done.failures) == (folder / "report.html", 1, ())
    assert done.page.read_text(encoding="utf-8") == render_report(build_view(*read_folder(folder)))
    assert sorted(entry.name for entry in folder.iterdir()) == ["explanation.json", "maps.safetensors", "report.html"]


@pytest.mark.parametrize("layout", ["records", "plain"])
def test_a_run_is_made_again_with_its_index(tmp_path: Path, layout: str) -> None:
    run = write_run(tmp_path / "run")
    if layout == "plain":
        run = run / "records"
    done = rebuild(run, provenance=lambda folder: {"record": f"id of {folder.name}"})
    assert done.page == run / "index.html"
    assert done.pages == 5
    index = done.page.read_text(encoding="utf-8")
    prefix = "records/" if layout == "records" else ""
    assert f'href="{prefix}0001/report.html"' in index
    assert f"id of {run.name}" in index
    page = (run / prefix / "0001" / "report.html").read_text(encoding="utf-8")
    assert f'href="{"../" * (2 if prefix else 1)}index.html"' in page
    assert "id of 0001" in page


def test_one_broken_record_does_not_stop_the_others(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "records" / "0002" / "explanation.json").write_text("{")
    document = json.loads((run / "records" / "0003" / "explanation.json").read_text())
    del document["targets"][0]["gap"]
    (run / "records" / "0003" / "explanation.json").write_text(json.dumps(document))
    done = rebuild(run)
    assert done.pages == 3
    assert ["0002" in done.failures[0], "0003" in done.failures[1], "targets.0.gap is missing" in done.failures[1]] == [
        True
    ] * 3
    rows = {row.id: row for row in read_rows(run)}
    assert rows["0002"].status == "failed"
    assert rows["0001"].status == "ok"
    assert not (run / "records" / "0002" / "report.html").exists()


@pytest.mark.parametrize("log", ["one/evidence", "one.evidence", "evidence"])
def test_a_page_whose_digest_the_log_holds_stays_as_it_is(tmp_path: Path, log: str) -> None:
    folder = write_sample(tmp_path / "one", chat())
    first = rebuild(folder).page
    (tmp_path / log).mkdir()
    assert rebuild(folder).page == first  # the same bytes
    first.write_text("an earlier version's page")
    again = rebuild(folder).page
    assert again.name == "report.rebuilt.html"
    assert first.read_text() == "an earlier version's page"
    assert again.read_text(encoding="utf-8") == render_report(build_view(*read_folder(folder)))


def test_the_index_links_to_the_newest_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    rebuild(run)
    (run / "evidence").mkdir()
    (run / "records" / "0002" / "report.html").write_text("an earlier version's page")
    index = rebuild(run).page.read_text(encoding="utf-8")
    assert "records/0002/report.rebuilt.html" in index
    assert "records/0001/report.html" in index


def test_a_folder_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no explanation"):
        rebuild(tmp_path)
    with pytest.raises(OutputError, match="cannot be read"):
        rebuild(tmp_path / "nowhere")


def test_a_run_that_is_all_failures_has_an_index(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"], "status": ["failed"], "error": ["boom"]}), tmp_path / "rows.parquet")
    assert "boom" in rebuild(tmp_path).page.read_text(encoding="utf-8")


def test_a_manifest_is_shown_and_a_broken_one_is_said(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"a": sample(["<s>", " a"], [" b"])})
    (run / "manifest.json").write_text(json.dumps({"recipe": {"name": "planted"}}))
    assert "recipe.name" in rebuild(run).page.read_text(encoding="utf-8")
    (run / "manifest.json").write_text("{")
    with pytest.raises(OutputError, match="cannot be read as JSON"):
        rebuild(run)


def test_an_evaluation_is_linked_where_there_is_one(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"a": sample(["<s>", " a"], [" b"])})
    assert "evaluation.html" not in rebuild(run).page.read_text(encoding="utf-8")
    (run / "evaluation.html").write_text("...")
    assert 'href="evaluation.html"' in rebuild(run).page.read_text(encoding="utf-8")


def test_the_index_in_words() -> None:
    rows = [
        RunRow(id="a", n_targets=2, agree=2),
        RunRow(id="b", n_targets=2, agree=1, disagree=1),
        RunRow(id="c", status="failed", error="boom"),
    ]
    view = build_index(rows, name="x\u202ey")
    assert view.title == "Run x[RLO]y: 3 records"
    assert view.sentences[0] == "2 records explained, 1 failed."
    assert view.sentences[1].startswith(
        "1 record has the status “agree” for every token. 1 record holds a token on which the methods contradict"
    )
    assert [row.href for row in view.rows] == ["records/a/report.html", "records/b/report.html", None]
    assert plain(view.rows[2].answer) == "boom"
    assert build_index(rows, name="x", pages={"b": "report.html"}).rows[0].href is None


def test_charts_count_every_row_once() -> None:
    rows = made_up(200)
    statuses, gaps, agreements = build_charts(rows)
    assert [bar.count for bar in statuses.bars] == [
        sum(getattr(row, name) for row in rows) for name in ("agree", "diluted", "disagree", "unconverged")
    ]
    assert [bar.label for bar in statuses.bars] == ["✓ agree", "~ diluted", "× disagree", "! unconverged"]
    assert sum(bar.count for bar in gaps.bars) == sum(row.worst_gap_ratio is not None for row in rows)
    assert sum(bar.count for bar in agreements.bars) == sum(row.median_spearman is not None for row in rows)
    edge = build_charts([RunRow(id="a", worst_gap_ratio=1.0), RunRow(id="b", worst_gap_ratio=1.0001)])[1]
    assert {bar.label: bar.count for bar in edge.bars if bar.count} == {"0.50 to 1.00": 1, "1.00 to 2.00": 1}
    assert max(bar.length for bar in edge.bars) == 1
    assert all(chart.bars for chart in build_charts([]))


def test_intervals_against_the_normal_approximation() -> None:
    """For a mean of 400 values the percentile bootstrap and mean ± 1.96 standard errors differ by a few per cent."""
    values = np.random.default_rng(1).normal(0.4, 0.2, size=400)
    rows = [RunRow(id=str(i), metrics={"a.m": float(v), "b.m": 0.5}) for i, v in enumerate(values)]
    one, constant = build_intervals(rows)
    error = 1.96 * values.std() / np.sqrt(len(values))
    assert (one.low, one.high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.2 * error)
    assert (constant.low, constant.mean, constant.high) == (0.5, 0.5, 0.5)
    assert (one.start, one.end) == (constant.start, constant.end) == (0.0, 0.5)  # variants share a scale
    assert (one.at(0.0), one.at(0.5)) == (0.0, 100.0)


@pytest.mark.parametrize("which", ["records", "records/0001"])
def test_a_link_among_the_records_is_refused(tmp_path: Path, which: str) -> None:
    run = write_run(tmp_path / "run")
    (run / which).rename(tmp_path / "elsewhere")
    (run / which).symlink_to(tmp_path / "elsewhere")
    for work in (lambda: rebuild(run), lambda: export(run, tmp_path / "records.csv")):
        with pytest.raises(OutputError, match=f"{which} is a link, and the records of a run are folders"):
            work()


def test_tables_hold_what_is_stored(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert export(run, tmp_path / "records.parquet") == 4
    assert pq.read_table(tmp_path / "records.parquet").to_pylist()[0]["agree"] == 12
    assert export(run / "records" / "0001", tmp_path / "tokens.csv") == 17
    with (tmp_path / "tokens.csv").open(encoding="utf-8-sig", newline="") as file:
        tokens = list(csv.DictReader(file))
    document, _ = chat()
    assert [row["text"] for row in tokens] == [csv_cell(target["text"]) for target in document["targets"]]
    assert "'\n" in {row["text"] for row in tokens}
    assert float(tokens[4]["gap"]) == 0.5
    assert tokens[4]["status"] == "unconverged"
    assert "agreement.spearman" in tokens[0]
    assert (tokens[0]["referee.sources"], tokens[0]["missed.attention_rollout"]) == ("2", "1")
    rows = export(run, tmp_path / "sources.parquet", table="sources")
    table = pq.read_table(tmp_path / "sources.parquet").to_pylist()
    assert len(table) == rows > 400
    assert {row["record"] for row in table} == {"0001", "0002", "0003", "0004"}


def test_a_table_of_sources_has_the_other_methods(tmp_path: Path) -> None:
    explanation = newest(chat())
    folder = write_sample(tmp_path / "one", explanation)
    for file in ("t.csv", "t.parquet"):
        export(folder, tmp_path / file, table="sources")
    table = pq.read_table(tmp_path / "t.parquet").to_pylist()
    with (tmp_path / "t.csv").open(encoding="utf-8-sig", newline="") as file:
        assert [row["method"] for row in csv.DictReader(file)] == [row["method"] for row in table]
    for method in ("lime", "leave_one_out.tokens", "saliency", "max_head_rollout"):
        found = [row for row in table if row["method"] == method and row["number"] == 3]
        assert [(row["first"], row["value"]) for row in found] == [
            (source["index"], source["value"]) for source in explanation[0]["targets"][2]["sources"][method]
        ]
    assert not [row for row in table if row["method"] == "mean_rollout"]


@pytest.mark.parametrize("command", [rebuild, lambda folder: export(folder, folder.parent / "t.csv", table="sources")])
@pytest.mark.parametrize("damage", ["targets", "tokens", "sources", "maps"])
def test_a_damaged_folder_is_one_sentence(tmp_path: Path, command: Callable[[Path], object], damage: str) -> None:
    document, maps = newest(chat())
    if damage == "maps":
        maps["rollout"] = maps["rollout"][:, :-1]
    elif damage == "sources":
        document["targets"][0]["sources"]["lime"] = [7]
    else:
        document[damage] = 7
    with pytest.raises(OutputError, match=r"does not match its schema|do not belong to this") as error:
        command(write_sample(tmp_path / "one", (document, maps)))
    assert "\n" not in str(error.value)


def test_the_gallery_of_an_earlier_version_still_has_its_pages(tmp_path: Path) -> None:
    """It is of schema /2, and stays as it was written."""
    run = Path(shutil.copytree(GALLERY, tmp_path / "gallery"))
    done = rebuild(run)
    records = sorted((run / "records").iterdir())
    assert (done.failures, done.pages) == ((), len(records) + 1)
    for record in records:
        document, maps = read_folder(record)
        assert document["schema"] == "llmxai.explanation/2"
        view = build_view(document, maps)
        assert (view.asked, view.also) == ((), ())
        assert "max_nodes" in {row.key for row in view.settings}
    assert (verify(run).exit, verify(GALLERY).exit) == (0, 0)


def test_a_cell_that_a_spreadsheet_would_run_is_disarmed(tmp_path: Path) -> None:
    folder = write_sample(tmp_path / "one", sample(["<s>", " a"], ['=HYPERLINK("x")', "\0", "\ud83d", "@b"]))
    export(folder, tmp_path / "t.csv")
    text = (tmp_path / "t.csv").read_text(encoding="utf-8-sig")
    assert "'=HYPERLINK" in text
    assert "'@b" in text
    assert "\\x00" in text
    assert export(folder, tmp_path / "t.parquet") == 4


@pytest.mark.parametrize(
    ("file", "table", "said"),
    [("t.xlsx", None, "ending gives the format"), ("t.csv", "words", "Unknown table"), ("t.csv", "records", "is one")],
)
def test_what_cannot_be_exported_says_why(tmp_path: Path, file: str, table: str | None, said: str) -> None:
    folder = write_sample(tmp_path / "one", chat())
    with pytest.raises(OptionError, match=said):
        export(folder, tmp_path / file, table=table)


def test_no_chromium_is_one_clear_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLMXAI_CHROMIUM", raising=False)
    with pytest.raises(OutputError, match="A PDF needs Chromium, Chrome or Edge"):
        find_chromium()
    monkeypatch.setenv("LLMXAI_CHROMIUM", "nothing-here")
    with pytest.raises(OutputError, match="LLMXAI_CHROMIUM names 'nothing-here'"):
        find_chromium()


def test_a_browser_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = write_page(write_sample(tmp_path / "one", chat()))
    monkeypatch.setenv("LLMXAI_CHROMIUM", "false")
    with pytest.raises(OutputError, match="could not print it"):
        write_pdf(page)
    assert not page.with_suffix(".pdf").exists()


@pytest.mark.browser
@pytest.mark.usefixtures("browser")
def test_the_command_makes_pages_and_a_pdf_without_torch(tmp_path: Path) -> None:
    folder = write_sample(tmp_path / "one", hostile())
    code = (
        "import sys; from llmxai.cli import app; app(['report', sys.argv[1], '--pdf'], standalone_mode=False); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "pages: 1",
        f"report: {folder / 'report.html'}",
        f"pdf: {folder / 'report.pdf'}",
        "False",
    ]
    assert (folder / "report.pdf").read_bytes().startswith(b"%PDF")


def test_runs_of_both_rules_have_the_columns_that_they_need() -> None:
    new = RunRow(id="a", n_targets=3, confirmed=2, undecided=1)
    old = RunRow(id="b", n_targets=2, agree=1, diluted=1)
    now = ["confirmed", "contradicted", "undecided", "unconverged"]
    columns = [name for name in to_columns([new]) if name in (*now, "agree", "diluted", "disagree", "unchecked")]
    assert columns == now
    assert {"agree", "diluted"} <= to_columns([new, old]).keys()
    assert not {"disagree", "unchecked"} & to_columns([new, old]).keys()
    view = build_index([new, old], name="x")
    assert [str(status) for status in view.statuses] == ["confirmed", "undecided", "agree", "diluted"]
    assert [row.counts for row in view.rows] == [(2, 1, 0, 0), (0, 0, 1, 1)]
    assert view.charts[0].said == "3 of 5 tokens are confirmed or agree; 2 are flagged."
    assert build_index([old], name="x").charts[0].said == "1 of 2 tokens agree; 1 are flagged."
