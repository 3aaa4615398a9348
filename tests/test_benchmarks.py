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
    """Every figure of the short table, and by name all that is not found."""
    written = (BENCHMARKS / "SURVIVAL.md").read_text(encoding="utf-8")
    docs = (BENCHMARKS.parent / "docs" / "verify.md").read_text(encoding="utf-8").splitlines()
    short, forged, changed = (
        section(written, title).splitlines() for title in ("In short", "Forgeries", "Changed files")
    )
    rows = [*short, *(line for line in forged if line[:1] == "|"), *(line for line in changed if line[:2] == "- ")]
    assert len(rows) > 20
    assert [line for line in rows if line not in docs] == []
