"""Ctrl-C and SIGTERM, as a user sends them: how commands end, and what the evidence log then says."""

from __future__ import annotations

import importlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ended import Run
from settings import N, make_data, make_document, records_of

from llmxai.evidence import verify
from llmxai.runs import worker as work_module


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """A shell has its background jobs ignore Ctrl-C, and the tests may be one."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_explanation_is_recorded_as_a_failure(
    run: Run, model_folder: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    explain = importlib.import_module("llmxai.explain")
    monkeypatch.setattr(explain, "replay", lambda *_what: os.kill(os.getpid(), number))
    ended = run("explain", "--model", model_folder, "--prompt", "Hello", "--max-new-tokens", "2", "--out", "out")
    assert ended.code == code
    assert ended.err.splitlines()[-1] == "Interrupted; no explanation was written."
    (record,) = records_of(Path("out"))
    assert (record["kind"], record["error"]["interrupted"]) == ("failure", True)
    assert verify("out").exit == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["evidence"]


@pytest.fixture
def recipe(tmp_path: Path, model_folder: Path) -> Path:
    make_data(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(make_document(model_folder, evaluate=None)), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("numbers", "code", "kinds"),
    [
        ([signal.SIGINT], 130, ["explanation", "explanation"]),
        ([signal.SIGINT, signal.SIGINT], 130, ["explanation", "failure"]),
        ([signal.SIGTERM], 143, ["explanation", "failure"]),
    ],
    ids=["one Ctrl-C: the row in hand is finished", "two: at once", "SIGTERM: at once"],
)
def test_an_interrupted_run_keeps_what_is_done_and_goes_on(
    run: Run,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    numbers: list[signal.Signals],
    code: int,
    kinds: list[str],
) -> None:
    real = work_module.explain

    def explain(model: Any, prompt: str, **how: Any) -> Any:
        for number in numbers if "person 1" in prompt else []:
            os.kill(os.getpid(), number)
        return real(model, prompt, **how)

    monkeypatch.setattr(work_module, "explain", explain)
    ended = run("run", recipe, "--out", "out")
    assert ended.code == code
    assert [record["kind"] for record in records_of(Path("out"))] == kinds
    assert verify("out").exit == 0
    monkeypatch.setattr(work_module, "explain", real)
    ended = run("run", recipe, "--out", "out", "--progress", "json")
    assert ended.out.splitlines()[0] == f"rows: {N - 1} done, 1 failed"
    assert verify("out").exit == 0
    news = [json.loads(line) for line in ended.err.splitlines() if line.startswith("{")]
    assert news[-1]["stage"] == "writing tables"
    last = [each for each in news if each["stage"] == "rows"][-1]
    assert (last["rows"], last["failed"], last["engine"]) == (N, 1, "local")
    assert last["targets_per_second"] > 0
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert manifest["command"] == f"llmxai run {recipe} --out out --progress json"
