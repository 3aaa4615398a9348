"""A text that was removed is nowhere in the run's folder any more."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ended import Ended
from settings import FAILS, N, make_recipe, records_of

from llmxai.evidence import prune, redact, verify
from llmxai.report import rebuild
from llmxai.report.rebuild import REBUILT
from llmxai.runs import clear_removed, run_recipe
from llmxai.runs.ledger import REMOVED, Ledger

TEXT = "person 1"
OTHERS = [f"person {i}" for i in range(N) if i != 1]


@pytest.fixture
def place(whole: Path, tmp_path: Path) -> Path:
    """A finished run of one's own, with a page made again and PDFs of the row that is to go."""
    place = Path(shutil.copytree(whole, tmp_path / "run"))
    folder = place / "records" / row(place)["id"]
    for name in (REBUILT, "report.pdf", "report.rebuilt.pdf"):
        (folder / name).write_text(TEXT)
    return place


def rows(run: Path) -> list[dict[str, Any]]:
    return pq.read_table(run / "rows.parquet").to_pylist()


def row(run: Path) -> dict[str, Any]:
    """Number 1, which is found by its place once its text is gone."""
    return rows(run)[1]


def holding(run: Path, text: str) -> list[str]:
    """The files of the run in which the text stands."""
    found = []
    for path in run.rglob("*"):
        if path.is_file():
            seen = json.dumps(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else path.read_bytes()
            if text in (seen if isinstance(seen, str) else seen.decode("utf-8", "replace")):
                found.append(path.relative_to(run).as_posix())
    return found


def test_the_text_stands_in_many_places_before(place: Path) -> None:
    assert {"rows.parquet", "index.html", f"ledger/{row(place)['id']}.json"} <= set(holding(place, TEXT))


def test_a_redacted_text_is_in_no_file_and_nothing_else_is_lost(place: Path) -> None:
    before = rows(place)
    redact(place, before[1]["record"], reason="asked")
    assert clear_removed(place) == 1
    assert holding(place, TEXT) == []
    for other in OTHERS:
        assert holding(place, other)
    after = rows(place)
    assert (after[1]["prompt"], after[1]["answer"]) == (REMOVED, REMOVED)
    assert after[1]["metric.saliency.comprehensiveness"] == before[1]["metric.saliency.comprehensiveness"]
    assert [each for i, each in enumerate(after) if i != 1] == [each for i, each in enumerate(before) if i != 1]
    assert pq.read_schema(place / "rows.parquet").names == list(before[0])
    assert verify(place).exit == 0


def test_again_it_changes_nothing(place: Path) -> None:
    redact(place, row(place)["record"], reason="asked")
    clear_removed(place)
    files = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert clear_removed(place) == 0
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == files


def test_neither_the_same_run_again_nor_new_pages_bring_it_back(place: Path, model_folder: Path, data: Path) -> None:
    redact(place, row(place)["record"], reason="asked")
    clear_removed(place)
    assert run_recipe(make_recipe(model_folder), place, root=data).failed == 1
    rebuild(place)
    assert holding(place, TEXT) == []
    assert row(place)["prompt"] == REMOVED


def test_the_error_of_a_row_that_failed_goes_as_well(place: Path) -> None:
    failed = rows(place)[FAILS]
    redact(place, failed["record"], reason="asked")
    clear_removed(place)
    entry = Ledger(place).read(failed["id"])
    assert entry is not None
    assert (entry["status"], entry["error"], entry["prompt"], entry["fields"]) == ("failed", REMOVED, REMOVED, {})
    assert holding(place, failed["error"]) == []


def test_all_records_pruned(place: Path) -> None:
    assert prune(place, older_than=timedelta(0)) is not None
    assert clear_removed(place) == N
    assert {each["prompt"] for each in rows(place)} == {REMOVED}
    assert [path for text in (TEXT, *OTHERS) for path in holding(place, text)] == []


def test_explanations_without_a_table(place: Path) -> None:
    """Their index is made from the explanations; where the last one goes, so does the index."""
    for name in ("ledger", "rows.parquet", "measures.parquet"):
        path = place / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    rebuild(place)
    ids = [record["id"] for record in records_of(place) if record["artefacts"]]
    redact(place, ids[1], reason="asked")
    assert clear_removed(place) == 0
    assert holding(place, TEXT) == []
    assert holding(place, "person 0")
    for id in (*ids[:1], *ids[2:]):
        redact(place, id, reason="asked")
    clear_removed(place)
    assert not (place / "index.html").exists()


def test_a_later_record_in_the_same_folder_keeps_its_pages(place: Path) -> None:
    folder = place / "records" / row(place)["id"]
    kept = (folder / "explanation.json").read_bytes()
    redact(place, row(place)["record"], reason="asked")
    (folder / "explanation.json").write_bytes(kept)
    clear_removed(place)
    assert (folder / REBUILT).exists()


def test_the_command_needs_no_torch(place: Path) -> None:
    asked = ["redact", row(place)["record"], "--reason", "asked", "--run", str(place)]
    code = f"import sys; from llmxai.cli import app\ntry: app({asked!r})\nfinally: print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (0, "False"), ended.stderr
    assert holding(place, TEXT) == []


def test_by_retention_of_the_command(place: Path, run: Callable[..., Ended]) -> None:
    assert run("evidence", "prune", str(place), "--older-than", "0d").code == 0
    assert holding(place, TEXT) == []
