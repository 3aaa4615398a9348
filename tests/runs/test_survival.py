"""Killed at any moment, and split over processes: no row lost, doubled or different."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from safetensors.numpy import load_file
from settings import FAILS, N, make_document

from llmxai.evidence import verify
from llmxai.evidence.log import read_log

HERE = Path(__file__).parent
TIMES = {"seconds", "created", "explanation_sha256"}


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(inner) for key, inner in value.items() if key not in TIMES}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def worked_by(run: Path) -> set[str]:
    """The processes that did a row, by the ledger."""
    return {json.loads(path.read_text())["worker"] for path in (run / "ledger").glob("*.json")}


def recorded(run: Path) -> list[tuple[str, str, str]]:
    """Id, kind and row of every record of a row, in the order of the log."""
    records = [json.loads(record) for _, record in read_log(run)]
    return [(each["id"], each["kind"], each["purpose"]) for each in records if each["entry"] == "recipe"]


def assert_same_run(out: Path, whole: Path) -> None:
    """Every row, measure and map is the one of the undisturbed run, and there is nothing else."""
    for name in ("rows.parquet", "measures.parquet"):
        found, wanted = (pq.read_table(run / name).to_pylist() for run in (out, whole))
        assert without_times(found) == without_times(wanted)
    names = sorted(folder.name for folder in (whole / "records").iterdir())
    assert sorted(folder.name for folder in (out / "records").iterdir()) == names
    assert len(names) == N - 1
    for name in names:
        found, wanted = (json.loads((run / "records" / name / "explanation.json").read_text()) for run in (out, whole))
        assert without_times(found) == without_times(wanted)
        maps, same = (load_file(run / "records" / name / "maps.safetensors") for run in (out, whole))
        assert maps.keys() == same.keys()
        assert all((maps[key] == same[key]).all() for key in maps)
    found, wanted = (recorded(run) for run in (out, whole))
    assert found == wanted, "the same ids in the same order"
    assert len(found) == N
    left = [path.name for path in out.rglob(".*") if path.name != ".lock"]
    assert left == []
    assert json.loads((out / "manifest.json").read_text())["status"] == "finished"
    assert verify(out).exit != 1, "the evidence of what was killed fits what is there"


def test_killed_at_random_moments(whole: Path, data: Path, model_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, HERE / "killed.py", model_folder, data, tmp_path / "run", "1"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= 3, "it was hardly killed: the test shows nothing"
    assert_same_run(tmp_path / "run", whole)


def test_two_processes_give_what_one_gives(whole: Path, data: Path, model_folder: Path, tmp_path: Path) -> None:
    recipe = data / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(make_document(model_folder)), encoding="utf-8")
    command = [sys.executable, "-m", "llmxai", "run", str(recipe), "--out", str(tmp_path / "run")]
    command += ["--engine", "accelerate", "--workers", "2"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"rows: {N - 1} done, 1 failed") == 1, done.stdout
    assert len(worked_by(tmp_path / "run")) == 2, "each of the two did some of the rows"
    assert_same_run(tmp_path / "run", whole)
    assert pq.read_table(tmp_path / "run" / "rows.parquet")["status"].to_pylist()[FAILS] == "failed"
