"""One run in a folder at a time: two runs, a killed one, and the mark that stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock, Timeout
from settings import N, make_recipe

from llmxai.errors import OutputError
from llmxai.runs import run_recipe
from llmxai.runs.engines import MARK, run_lock
from llmxai.runs.scheduling import Processes

HOLD = """
import sys, time
from pathlib import Path
from filelock import FileLock
lock = FileLock(sys.argv[1], blocking=False, preserve_lock_file=True)
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""
BUSY = "another run is using it"


def test_a_second_run_in_the_same_folder_is_refused_and_leaves_it_as_it_was(
    data: Path, model_folder: Path, tmp_path: Path
) -> None:
    """The second one starts while the first is in its second row."""
    recipe, out = make_recipe(model_folder, evaluate=None), tmp_path / "run"
    seen: list[str] = []

    def start_another(news: object) -> None:
        if getattr(news, "rows", 0) != 1 or seen:
            return
        before = sorted(path for path in out.rglob("*"))
        with pytest.raises(OutputError, match=BUSY):
            run_recipe(recipe, out, root=data)
        seen.append("refused")
        assert sorted(path for path in out.rglob("*")) == before

    outcome = run_recipe(recipe, out, root=data, progress=start_another)
    assert seen == ["refused"]
    assert (outcome.ok, outcome.failed) == (N - 1, 1)
    assert (out / MARK).exists()
    assert run_recipe(recipe, out, root=data).ok == N - 1


def test_another_process_holds_the_folder_until_it_is_killed(data: Path, model_folder: Path, tmp_path: Path) -> None:
    recipe, out = make_recipe(model_folder, evaluate=None), tmp_path / "run"
    out.mkdir()
    command = [sys.executable, "-c", HOLD, str(out / MARK)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputError, match=BUSY):
            run_recipe(recipe, out, root=data)
        other.kill()
        other.wait()
    assert (out / MARK).exists(), "the mark of a killed run stays"
    assert run_recipe(recipe, out, root=data).ok == N - 1


def test_the_mark_stays_and_says_that_the_folder_is_a_runs(model_folder: Path, tmp_path: Path) -> None:
    recipe, out = make_recipe(model_folder), tmp_path / "run"
    for _ in range(2):
        with run_lock(out, recipe, Processes()):
            with pytest.raises(Timeout):
                FileLock(out / MARK, blocking=False).acquire()
            (out / "rows.parquet").touch()
        assert (out / MARK).exists()
        with FileLock(out / MARK, blocking=False):
            pass
    (out / MARK).unlink()
    with (
        pytest.raises(OutputError, match=r"holds 'rows.parquet' and no run, so it is left alone"),
        run_lock(out, recipe, Processes()),
    ):
        pytest.fail("entered")


def test_an_error_inside_frees_the_folder(model_folder: Path, tmp_path: Path) -> None:
    recipe, out = make_recipe(model_folder), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt), run_lock(out, recipe, Processes()):
        raise KeyboardInterrupt
    with run_lock(out, recipe, Processes()):
        pass


def test_a_process_that_does_not_lead_takes_no_lock(model_folder: Path, tmp_path: Path) -> None:
    recipe, out = make_recipe(model_folder), tmp_path / "run"
    with run_lock(out, recipe, Processes()), run_lock(out, recipe, Processes(index=1, count=2)):
        assert [path.name for path in out.iterdir()] == [MARK]


def test_a_folder_that_cannot_be_written(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(OutputError, match="cannot be written"),
        run_lock(tmp_path / "file" / "run", make_recipe(model_folder), Processes()),
    ):
        pytest.fail("entered")
