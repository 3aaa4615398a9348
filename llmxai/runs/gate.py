"""A gate for pipelines: conditions on the figures of a run, a JUnit file and a Markdown summary."""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq

from llmxai.errors import OptionError, OutputError, did_you_mean
from llmxai.evaluation.measure import BETTER
from llmxai.names import CURRENT
from llmxai.runs.ledger import write_atomically

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
}
STATUSES = tuple(map(str, CURRENT))
ROWS = ("rows", "failed")
CONDITION = re.compile(
    r"\s*(?P<figure>[^\s<>=][^<>=]*?)\s*(?P<operator><=|>=|==|<|>)\s*(?P<value>[-+]?\d*\.?\d+)\s*(?P<share>%?)\s*"
)
MOST_FAILURES = 20
"""Failed rows that the summary lists."""
FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML cannot hold."""


@dataclass(frozen=True)
class Condition:
    """What must not hold of a run: `unconverged > 5%`, `failed > 0`, `deletion_path.mrr < 0.9`."""

    text: str
    figure: str
    operator: str
    value: float
    share: bool
    """Whether figure and value are shares: of all explained tokens, or of all rows."""


@dataclass(frozen=True)
class Judged:
    """A condition, the figure of the run, and whether the condition holds: if so, the run is not accepted."""

    condition: Condition
    found: float | None
    """None if the run does not have the figure, which does not pass either."""

    @property
    def passed(self) -> bool:
        wanted = self.condition
        return self.found is not None and not OPERATORS[wanted.operator](self.found, wanted.value)

    @property
    def shown(self) -> str:
        """The figure of the run, in words."""
        if self.found is None:
            return "not measured"
        return f"{self.found:.4g}%" if self.condition.share else f"{self.found:.4g}"


@dataclass(frozen=True)
class Verdict:
    """A run and what its gate says."""

    run: str
    judged: tuple[Judged, ...]
    rows: tuple[Mapping[str, Any], ...]
    """id, source, status, error, seconds and the counts of statuses of every row."""

    @property
    def passed(self) -> bool:
        return all(each.passed for each in self.judged)


def read_condition(text: str) -> Condition:
    """`FIGURE OPERATOR NUMBER`, with `%` for a share.

    Figures: a status (tokens), `rows` and `failed`, or METHOD.FIGURE, the mean of an evaluation's figure over its
    questions. Raises OptionError, suggesting the nearest figure.

    >>> read_condition("unconverged > 5%")
    """
    found = CONDITION.fullmatch(text)
    if found is None:
        raise OptionError(
            f"--fail-if {text!r} is no condition. Expected a figure, one of {' '.join(OPERATORS)}, and a number: "
            f"'unconverged > 5%', 'failed > 0', 'deletion_path.mrr < 0.9'."
        )
    name, share = found["figure"], bool(found["share"])
    method, _, figure = name.rpartition(".")
    if method:
        if figure not in BETTER:
            raise OptionError(
                f"--fail-if {text!r}: there is no figure {figure!r}.{did_you_mean(figure, BETTER)} Known: "
                f"{', '.join(BETTER)}."
            )
        if share:
            raise OptionError(f"--fail-if {text!r}: {name} is a mean, not a share. Leave out the %.")
    elif name not in (*STATUSES, *ROWS):
        raise OptionError(
            f"--fail-if {text!r}: there is no figure {name!r}.{did_you_mean(name, (*STATUSES, *ROWS))} Known: "
            f"{', '.join((*STATUSES, *ROWS))}, and METHOD.FIGURE of an evaluation, such as deletion_path.mrr."
        )
    if name == "rows" and share:
        raise OptionError(f"--fail-if {text!r}: rows are counted. Leave out the %.")
    return Condition(" ".join(text.split()), name, found["operator"], float(found["value"]), share)


def require_figures(conditions: Sequence[Condition], *, explains: bool, methods: Sequence[str]) -> None:
    """Raise OptionError for a condition on what a recipe does not compute, before anything runs."""
    for condition in conditions:
        method = condition.figure.rpartition(".")[0]
        if method and method not in methods:
            raise OptionError(
                f"--fail-if {condition.text!r}: the recipe evaluates no {method!r}.{did_you_mean(method, methods)} It "
                f"evaluates: {', '.join(methods) or 'nothing'}."
            )
        if condition.figure in STATUSES and not explains:
            raise OptionError(f"--fail-if {condition.text!r}: the recipe explains nothing, so no token has a status.")


def judge(run: Path, conditions: Sequence[Condition]) -> Verdict:
    """What the tables of a finished run say of each condition. Raises OutputError if it has none."""
    _require_finished(run)
    columns = [*("id", "source", "status", "error", "seconds", "n_targets"), *STATUSES]
    try:
        rows = pq.read_table(run / "rows.parquet", columns=columns).to_pylist()
        means = _means(run / "measures.parquet")
    except (OSError, pa.ArrowException) as error:
        raise OutputError(
            f"{run}: its tables cannot be read ({error}). The same `llmxai run` command writes them again."
        ) from error
    return Verdict(run.name, tuple(Judged(each, _found(each, rows, means)) for each in conditions), tuple(rows))


def _require_finished(run: Path) -> None:
    if not run.is_dir():
        raise OutputError(f"{run}: there is no such folder. Give the folder of a finished run (llmxai run).")
    if not (run / "rows.parquet").is_file():
        raise OutputError(f"{run}: has no rows.parquet. Expected the folder of a finished run (llmxai run).")
    try:
        status = json.loads((run / "manifest.json").read_text(encoding="utf-8"))["status"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        status = "unknown"
    if status != "finished":
        raise OutputError(
            f"{run}: is not finished (its manifest.json: {status}). The same `llmxai run` command resumes the run."
        )


def _means(path: Path) -> dict[str, float]:
    """By METHOD.FIGURE the mean over the questions that have it."""
    if not path.is_file():
        return {}
    values: dict[str, list[float]] = {}
    for line in pq.read_table(path, columns=["method", "figure", "value"]).to_pylist():
        if line["figure"] is not None:
            values.setdefault(f"{line['method']}.{line['figure']}", []).append(line["value"])
    return {name: fmean(found) for name, found in values.items()}


def _found(condition: Condition, rows: Sequence[Mapping[str, Any]], means: Mapping[str, float]) -> float | None:
    name = condition.figure
    if name == "rows":
        return float(len(rows))
    if name == "failed":
        count, total = sum(row["status"] != "ok" for row in rows), len(rows)
    elif name in STATUSES:
        counted = [row for row in rows if row[name] is not None]
        count, total = sum(row[name] for row in counted), sum(row[each] for row in counted for each in STATUSES)
        if not counted:
            return None
    else:
        value = means.get(name)
        return None if value is None or math.isnan(value) else value
    if not condition.share:
        return float(count)
    return 100 * count / total if total else None


def write_junit(verdict: Verdict, path: Path) -> None:
    """One test case per condition and per row, as CI systems show them. Raises OutputError."""
    root = ElementTree.Element("testsuites", name=_xml(verdict.run))
    gate = _suite(root, "gate", len(verdict.judged), failures=sum(not each.passed for each in verdict.judged))
    for each in verdict.judged:
        case = ElementTree.SubElement(gate, "testcase", classname="gate", name=_xml(f"not {each.condition.text}"))
        if not each.passed:
            said = f"{each.condition.figure} is {each.shown}; the gate refuses {each.condition.text}"
            ElementTree.SubElement(case, "failure", message=_xml(said)).text = _xml(said)
    bad = sum(row["status"] != "ok" for row in verdict.rows)
    suite = _suite(root, "rows", len(verdict.rows), errors=bad)
    for row in verdict.rows:
        seconds = f"{row['seconds'] or 0:.3f}"
        case = ElementTree.SubElement(
            suite, "testcase", classname=_xml(row["source"] or "rows"), name=_xml(row["id"]), time=seconds
        )
        if row["status"] != "ok":
            error = _xml(row["error"] or "failed")
            ElementTree.SubElement(case, "error", message=error.splitlines()[0] if error else "failed").text = error
    ElementTree.indent(root)
    write_atomically(path, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n")


def _suite(root: ElementTree.Element, name: str, tests: int, **counts: int) -> ElementTree.Element:
    shown = {key: str(value) for key, value in ({"tests": tests, "failures": 0, "errors": 0} | counts).items()}
    return ElementTree.SubElement(root, "testsuite", {"name": name, **shown})


def _xml(text: str) -> str:
    return FORBIDDEN.sub("\ufffd", text)


def write_summary(verdict: Verdict, path: Path) -> None:
    """A page in Markdown for a pull request. Raises OutputError."""
    write_atomically(path, ("\n".join(_summary(verdict)) + "\n").encode("utf-8", "backslashreplace"))


def _summary(verdict: Verdict) -> Iterator[str]:
    failed = [row for row in verdict.rows if row["status"] != "ok"]
    outcome = "" if not verdict.judged else ": passed" if verdict.passed else ": **not passed**"
    yield f"### llmxai, {_cell(verdict.run)}{outcome}"
    yield ""
    if verdict.judged:
        yield "| fails if | found | |"
        yield "| --- | --- | --- |"
        yield from (
            f"| {_cell(each.condition.text)} | {each.shown} | {'passed' if each.passed else '**failed**'} |"
            for each in verdict.judged
        )
        yield ""
    counts = {name: sum(row[name] or 0 for row in verdict.rows) for name in STATUSES}
    tokens = sum(counts.values())
    said = ", ".join(f"{count} {name} ({count / tokens:.0%})" for name, count in counts.items() if count)
    yield f"{len(verdict.rows)} rows, {len(failed)} failed." + (f" {tokens} tokens: {said}." if tokens else "")
    if failed:
        yield ""
        yield "| failed row | why |"
        yield "| --- | --- |"
        yield from (f"| {_cell(row['id'])} | {_cell(row['error'] or '')} |" for row in failed[:MOST_FAILURES])
        if (more := len(failed) - MOST_FAILURES) > 0:
            yield f"| and {more} more | |"


def _cell(text: str) -> str:
    """On one line of a table, with nothing that Markdown or HTML would obey."""
    line = " ".join(text.split())[:300]
    return re.sub(r"([\\`*_{}\[\]<>|#!~])", r"\\\1", line)
