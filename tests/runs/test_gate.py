"""The gate: what conditions mean, what is written for CI, and how the command ends."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pyarrow.parquet as pq
import pytest
import yaml
from ended import Ended
from settings import FAILS, N, make_data, make_document

from llmxai.errors import OptionError, OutputError
from llmxai.runs.gate import Judged, Verdict, judge, read_condition, require_figures, write_junit, write_summary

STATUSES = ("confirmed", "contradicted", "undecided", "unconverged")


def found(run: Path, text: str) -> float | None:
    (judged,) = judge(run, [read_condition(text)]).judged
    return judged.found


def test_figures_are_those_of_a_plain_count(whole: Path) -> None:
    rows = pq.read_table(whole / "rows.parquet").to_pylist()
    counts: Counter[str] = Counter()
    for row in rows:
        for status in STATUSES:
            counts[status] += row[status] or 0
    tokens = sum(row["n_targets"] for row in rows if row["status"] == "ok")
    assert counts.total() == tokens > 0
    for status in STATUSES:
        assert found(whole, f"{status} > 1") == counts[status]
        assert found(whole, f"{status} > 1%") == pytest.approx(100 * counts[status] / tokens)
    assert found(whole, "rows < 1") == N
    assert found(whole, "failed > 0") == 1
    assert found(whole, "failed > 0%") == pytest.approx(100 / N)
    lines = pq.read_table(whole / "measures.parquet").to_pylist()
    values = [line["value"] for line in lines if (line["method"], line["figure"]) == ("saliency", "mrr")]
    assert len(values) == N - 1
    assert found(whole, "saliency.mrr < 0.5") == pytest.approx(sum(values) / len(values))
    assert found(whole, "saliency.emprt < 0.5") is None  # not in this recipe: it does not pass


@pytest.mark.parametrize(
    ("text", "value", "passed"),
    [
        ("failed > 1", 1.0, True),
        ("failed > 0", 1.0, False),
        ("failed >= 1", 1.0, False),
        ("failed < 1", 1.0, True),
        ("failed <= 1", 1.0, False),
        ("failed == 1", 1.0, False),
        ("  confirmed<50% ", 49.9, False),
        ("confirmed<50%", 50.0, True),
        ("leave_one_out.lds < .5", None, False),
        ("a label with spaces.mrr < -0.5", 0.0, True),
    ],
)
def test_a_condition_is_what_must_not_hold(text: str, value: float | None, passed: bool) -> None:
    assert Judged(read_condition(text), value).passed is passed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("unconverged", "is no condition"),
        ("unconverged > many", "is no condition"),
        ("unconverged => 5", "is no condition"),
        ("unconvergd > 5%", "Did you mean 'unconverged'"),
        ("saliency.mr > 5", "Did you mean 'mrr'"),
        ("saliency.mrr > 5%", "is a mean, not a share"),
        ("rows < 5%", "Leave out the %"),
    ],
)
def test_what_is_no_condition_says_what_is(text: str, words: str) -> None:
    with pytest.raises(OptionError, match=re.escape(words)):
        read_condition(text)


def test_what_the_recipe_does_not_compute_is_refused() -> None:
    with pytest.raises(OptionError, match=r"evaluates no 'salience'\. Did you mean 'saliency'"):
        require_figures([read_condition("salience.mrr < 1")], explains=True, methods=["saliency"])
    with pytest.raises(OptionError, match="explains nothing"):
        require_figures([read_condition("confirmed < 1")], explains=False, methods=[])
    require_figures([read_condition("failed > 0")], explains=False, methods=[])


def test_junit_is_well_formed_and_complete(whole: Path, tmp_path: Path) -> None:
    verdict = judge(whole, [read_condition("failed > 0"), read_condition("unconverged > 100%")])
    write_junit(verdict, tmp_path / "gate.xml")
    root = ElementTree.parse(tmp_path / "gate.xml").getroot()
    gate, rows = root.findall("testsuite")
    assert [(suite.get("tests"), suite.get("failures"), suite.get("errors")) for suite in (gate, rows)] == [
        ("2", "1", "0"),
        (str(N), "0", "1"),
    ]
    refused, accepted = gate.findall("testcase")
    assert refused.get("name") == "not failed > 0"
    assert refused.find("failure") is not None
    assert accepted.find("failure") is None
    errors = [case.find("error") for case in rows.findall("testcase")]
    assert [error is not None for error in errors] == [i == FAILS for i in range(N)]
    assert "empty" in (errors[FAILS].text or "")  # type: ignore[union-attr]


def test_texts_cannot_break_what_is_written(tmp_path: Path) -> None:
    row = {"id": "a|b", "source": None, "status": "failed", "error": "<script>\x1b[2J\n# |`x`| [a](b)", "seconds": None}
    verdict = Verdict("run", (), ({**row, **dict.fromkeys(STATUSES)},))
    write_junit(verdict, tmp_path / "gate.xml")
    (case,) = ElementTree.parse(tmp_path / "gate.xml").getroot().iter("testcase")
    assert case.get("name") == "a|b"
    write_summary(verdict, tmp_path / "summary.md")
    line = (tmp_path / "summary.md").read_text(encoding="utf-8").splitlines()[-1]
    assert line.count("|") - line.count(r"\|") == 3
    assert r"\<script\>" in line
    assert r"\[a\](b)" in line


def test_a_folder_without_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"has no rows\.parquet"):
        judge(tmp_path, [])
    for status in ("stopped", "running"):
        (tmp_path / "rows.parquet").write_bytes(b"of an earlier call")
        (tmp_path / "manifest.json").write_text(json.dumps({"status": status}))
        with pytest.raises(OutputError, match=f"is not finished.*{status}.*resumes"):
            judge(tmp_path, [])
    (tmp_path / "manifest.json").write_text(json.dumps({"status": "finished"}))
    with pytest.raises(OutputError, match="its tables cannot be read"):
        judge(tmp_path, [])


def test_the_command_looks_at_the_run_even_without_conditions(run: Callable[..., Ended], whole: Path) -> None:
    assert run("gate", whole).code == 0
    for folder, words in (("nowhere", "there is no such folder"), (whole / "evidence", "has no rows.parquet")):
        ended = run("gate", folder)
        assert ended.code == 2
        assert words in ended.err


def test_the_command_ends_with_3(run: Callable[..., Ended], model_folder: Path, tmp_path: Path) -> None:
    make_data(tmp_path)
    document = make_document(model_folder, evaluate=None)
    document["data"][0]["limit"] = 2
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    command = ("run", "tiny.yaml", "--out", "out", "--junit", "gate.xml", "--summary", "summary.md")
    refused = run(*command, "--fail-if", "rows < 3", "--fail-if", "failed > 0")
    assert refused.code == 3, refused.err
    assert refused.out.splitlines()[2:] == ["FAILED: not rows < 3 (2)", "passed: not failed > 0 (0)"]
    summary = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "### llmxai, out: **not passed**" in summary
    assert r"| rows \< 3 | 2 | **failed** |" in summary
    assert "2 rows, 0 failed." in summary
    assert ElementTree.parse(tmp_path / "gate.xml").getroot().get("name") == "out"
    accepted = run(*command, "--fail-if", "failed > 0")
    assert accepted.code == 0
    assert run("gate", "out", "--fail-if", "rows < 3").code == 3
    assert run("gate", "out", "--fail-if", "rows < 2").code == 0
    before = run("run", "tiny.yaml", "--out", "other", "--fail-if", "saliency.mrr < 1")
    assert before.code == 2
    assert "evaluates no 'saliency'" in before.err
    assert not (tmp_path / "other").exists()
