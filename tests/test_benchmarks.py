"""The benchmarks take an hour and no test runs them; what they take from the package must at least be there."""

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
