"""What the design promises of the code itself: who may import whom, how long things are, what is public."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import llmxai

PACKAGE = Path(llmxai.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

# each part and what it may import besides itself; a part may also import what those may
MAY_IMPORT = {
    "_lazy": set(),
    "errors": set(),
    "names": set(),
    "versions": set(),
    "checks": {"names"},
    "types": {"errors", "checks"},
    "models": {"types"},
    "generation": {"models"},
    "methods": {"generation"},
    "crosscheck": {"types", "methods"},
    "explain": {"crosscheck", "versions"},
    "evidence": {"types", "versions", "_lazy"},
    "store": {"evidence", "_lazy"},
    "report": {"store", "names"},
    "save": {"evidence", "report", "store"},
    "recompute": {"explain", "store"},
    "evaluation": {"explain"},
    "runs": {"evaluation", "save"},
    "commands": {"runs", "recompute", "report", "__init__"},
    "notebook": {"report", "store", "types"},
    "cli": {"commands"},
    "__main__": {"cli"},
    "__init__": {"runs", "recompute", "notebook", "_lazy"},
}
LONGEST_MODULE = 300
LONGEST_FUNCTION = 60


def part_of(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def allowed(part: str) -> set[str]:
    below = MAY_IMPORT[part] - {"__init__"}
    return {part}.union(MAY_IMPORT[part], *(allowed(other) for other in below))


def imported_parts(module: Path) -> set[str]:
    parts = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            root, _, rest = name.partition(".")
            if root == "llmxai":
                part = rest.split(".")[0]
                parts.add(part if part in MAY_IMPORT else "__init__")
    return parts


def name_of(module: Path) -> str:
    return module.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_imports_run_with_the_table(module: Path) -> None:
    against = imported_parts(module) - allowed(part_of(module))
    assert against == set(), f"{name_of(module)} must not import {sorted(against)}"


def test_every_part_stands_in_the_table() -> None:
    assert {part_of(module) for module in MODULES} <= set(MAY_IMPORT)


def test_the_table_has_teeth() -> None:
    assert "report" not in allowed("methods")
    assert "methods" not in allowed("generation")
    assert imported_parts(PACKAGE / "explain.py") >= {"crosscheck", "errors", "methods", "models", "types"}


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_modules_and_functions_are_short(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_MODULE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node) is not None
            body = node.body[1:] if documented and len(node.body) > 1 else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1
            assert lines <= LONGEST_FUNCTION, f"{module.name}: {node.name} has {lines} lines"


def test_what_is_public() -> None:
    assert llmxai.__all__ == [
        "METHODS",
        "Ablation",
        "Attribution",
        "Compute",
        "CrossCheck",
        "Decoding",
        "Explanation",
        "Generation",
        "LlmxaiError",
        "LoadedModel",
        "Role",
        "Rollout",
        "Status",
        "Tolerance",
        "UserError",
        "attention_rollout",
        "compare_full",
        "explain",
        "explain_many",
        "layer_integrated_gradients",
        "leave_one_out",
        "load",
        "save",
        "wrap",
    ]
    assert all(hasattr(llmxai, name) for name in llmxai.__all__)
    assert callable(llmxai.explain)
    assert importlib.import_module("llmxai.explain").explain is llmxai.explain  # and not the module of that name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = llmxai.nothing


@pytest.mark.parametrize("module", ["llmxai.cli", "llmxai.report", "llmxai.store"])
def test_what_needs_no_torch_does_not_import_it(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'pandas'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_table_of_methods() -> None:
    assert {"attention_rollout", "layer_integrated_gradients", "random", "recency", "saliency"} <= set(llmxai.METHODS)
    public = {value for name in llmxai.methods.__all__ if callable(value := getattr(llmxai.methods, name))}
    from llmxai.methods import variant_names

    assert set(variant_names()) <= set(llmxai.METHODS)
    for entry in llmxai.METHODS.values():
        assert entry.function in public
        assert entry.summary.rstrip(".").count("\n") == 0
        assert entry.needs <= {"gradients", "attentions", "forward"}
        assert "http" in entry.source


def test_every_error_a_user_can_mend_is_one() -> None:
    tree = ast.parse((PACKAGE / "errors.py").read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    drawn = ast.get_docstring(tree) or ""
    assert all(node.name in drawn and ast.get_docstring(node) for node in classes)
    known = {name: getattr(llmxai.errors, name) for name in (node.name for node in classes)}
    assert all(issubclass(error, llmxai.LlmxaiError) for error in known.values())
