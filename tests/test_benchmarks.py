"""The benchmarks take an hour and no test runs them; what they take from the package must at least be there, and what
the docs quote of them is what they wrote."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_what_a_benchmark_imports_is_there(path: Path) -> None:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    taken = [node for node in nodes if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llmxai")]
    missing = [
        f"{node.module}.{alias.name}"
        for node in taken
        for alias in node.names
        if not hasattr(importlib.import_module(str(node.module)), alias.name)
    ]
    assert missing == []


def section(text: str, title: str) -> str:
    return text.partition(f"## {title}\n\n")[2].partition("\n## ")[0].strip()


def test_the_docs_quote_what_was_counted_of_survival() -> None:
    """Every figure of the short table, and every forgery that survives, by name."""
    written = (BENCHMARKS / "SURVIVAL.md").read_text(encoding="utf-8")
    docs = (BENCHMARKS.parent / "docs" / "verify.md").read_text(encoding="utf-8")
    short = section(written, "In short")
    assert short.count("\n") > 8
    assert short in docs
    rows = [line.strip("| ").split(" | ") for line in section(written, "Forgeries").splitlines() if "|" in line][2:]
    survive = [line for line in rows if "0" in line]
    assert len(survive) > 3
    told = " ".join(docs.split())
    assert [name for name, *_ in survive if name not in told] == []
    changes = [line.removeprefix("- ") for line in section(written, "Changed files").splitlines() if line[:2] == "- "]
    assert [name for name in changes if name not in told] == []
