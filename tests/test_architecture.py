"""What the design promises of the code itself: who may import whom, how long things are, what is public."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import llmxai
from llmxai.explain import variant_names
from llmxai.methods.attention.rollout import VARIANTS
from llmxai.names import OUTLETS

PACKAGE = Path(llmxai.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
PACKAGES = [module for module in MODULES if module.name == "__init__.py"]

BASE = {"errors", "names", "settings", "text"}
# each part and what it may import besides itself, imports inside functions and for types alone included; what a part
# may import stands above it, so that there is one direction and no circle
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "names": set(),
    "environment": set(),
    "stats": set(),
    "text": {"names"},
    "settings": {"errors"},
    "pieces": {"names"},
    "target": {"errors", "names", "text"},
    "types": {*BASE, "pieces", "target"},
    "trace": {"names", "types"},
    "tables": {"names", "text", "types"},
    "models": {*BASE, "types", "environment"},
    "generation": {*BASE, "types", "models"},
    "inputs": {*BASE, "types", "models", "generation"},
    "methods": {*BASE, "types", "trace", "models", "stats"},
    "crosscheck": {*BASE, "types", "methods", "stats"},
    "explanation": {*BASE, "types", "trace", "tables"},
    "explain": {*BASE, "types", "trace", "models", "generation", "inputs", "methods", "crosscheck", "explanation"},
    "evidence": {*BASE, "types", "environment", "explanation"},
    "store": {*BASE, "types", "trace", "methods", "crosscheck", "explanation"},
    "report": {*BASE, "store"},
    "save": {*BASE, "explanation", "evidence", "store", "report"},
    "recompute": {*BASE, "types", "models", "explanation", "explain", "evidence", "store"},
    "evaluation": {*BASE, "types", "models", "generation", "methods", "stats"},
    "runs": {
        *{*BASE, "types", "models", "generation", "methods", "explanation", "explain", "evidence", "report", "save"},
        "evaluation",
    },
    "exchange": {*BASE, "store", "runs"},
    "__init__": {
        *{*BASE, "types", "models", "generation", "methods", "explanation", "explain", "store", "report", "save"},
        "recompute",
        "tables",
    },
    "commands": {
        *{
            *BASE,
            "types",
            "models",
            "generation",
            "methods",
            "explanation",
            "explain",
            "evidence",
            "store",
            "report",
            "save",
            "recompute",
            "evaluation",
        },
        *("runs", "exchange", "__init__"),
    },
    "cli": {"errors", "commands"},
    "__main__": {"cli"},
}
DYNAMIC: dict[str, set[str]] = {}
"""Modules that import by a computed name, and the parts that they may reach by it: none."""
IMPORTERS = ("importlib.import_module", "importlib.__import__", "builtins.__import__", "__import__")
ATTACH = "lazy_loader.attach"
OTHER_WAYS = (
    *("importlib.reload", "importlib.util.spec_from_file_location", "importlib.machinery.SourceFileLoader"),
    *("pkgutil.resolve_name", "runpy.run_module", "runpy.run_path", "lazy_loader.attach_stub", "lazy_loader.load"),
    *("exec", "eval", "builtins.exec", "builtins.eval"),
)
"""Ways to import that a reader of the text cannot follow."""
MOST_MODULES = 150
LONGEST_MODULE = 500
LONGEST_FUNCTION = 60


@dataclass(frozen=True)
class Imports:
    """What the text of a module imports: dotted names below llmxai, and lines where the name cannot be read."""

    names: frozenset[str]
    unreadable: frozenset[int]


def read_imports(text: str, module: str) -> Imports:
    """Of a module with the dotted name `module`: statements anywhere, calls that import, and lazily attached tables."""
    tree = ast.parse(text)
    local = local_names(tree)
    names, unreadable = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call):
            found = imported_by_call(node, dotted(node.func, local), module)
            names |= found or set()
            if found is None:
                unreadable.add(node.lineno)
        elif isinstance(node, ast.Attribute):
            names |= {name} if (name := dotted(node, local)).startswith("llmxai.") else set()
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            names |= {
                node.value
            } & module_names()  # the name of a module as text: for a call that imports, or for another process
    below = frozenset(name for name in names if name.partition(".")[0] == "llmxai")
    return Imports(below, frozenset(unreadable))


def local_names(tree: ast.AST) -> dict[str, str]:
    """What the names that import statements bind stand for."""
    local = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                local[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            local |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return local


def dotted(node: ast.expr, local: dict[str, str]) -> str:
    """`a.b.c` with `a` as what it stands for; empty for anything else."""
    if isinstance(node, ast.Name):
        return local.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (before := dotted(node.value, local)):
        return f"{before}.{node.attr}"
    return ""


def imported_by_call(call: ast.Call, function: str, module: str) -> set[str] | None:
    """What a call imports; None where it imports something that cannot be read from the text."""
    if function == ATTACH:
        return attached(call, module)
    if function in IMPORTERS:
        name = call.args[0] if call.args else next((k.value for k in call.keywords if k.arg == "name"), None)
        plain = isinstance(name, ast.Constant) and isinstance(name.value, str) and not name.value.startswith(".")
        return {name.value} if plain and isinstance(name, ast.Constant) else None
    return None if function in OTHER_WAYS else set()


def attached(call: ast.Call, module: str) -> set[str] | None:
    """The modules of a table for `lazy_loader.attach(__name__, submodules, submod_attrs)`."""
    if not (call.args and isinstance(call.args[0], ast.Name) and call.args[0].id == "__name__"):
        return None
    tables = [*call.args[1:], *(keyword.value for keyword in call.keywords)]
    found = set()
    for table in tables:
        entries = table.keys if isinstance(table, ast.Dict) else getattr(table, "elts", [None])
        for entry in entries:
            if not (isinstance(entry, ast.Constant) and isinstance(entry.value, str)):
                return None
            found.add(f"{module}.{entry.value}")
    return found


@cache
def module_names() -> frozenset[str]:
    """Of all modules, llmxai itself among them."""
    return frozenset(map(dotted_name, MODULES))


def dotted_name(module: Path) -> str:
    pieces = module.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(pieces[:-1] if pieces[-1] == "__init__" else pieces)


def name_of(module: Path) -> str:
    return module.relative_to(PACKAGE).as_posix()


def part_of(name: str) -> str:
    """The top-level module or package of a dotted name; `__init__` for a name of llmxai itself."""
    part = f"{name}.".split(".")[1]
    return part if part in {path.stem for path in PACKAGE.iterdir()} else "__init__"


def parts_imported(text: str, module: str) -> set[str]:
    return {part_of(name) for name in read_imports(text, module).names}


def own_part(module: Path) -> str:
    return module.relative_to(PACKAGE).parts[0].removesuffix(".py")


def read(module: Path) -> str:
    return module.read_text(encoding="utf-8")


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_imports_run_with_the_table(module: Path) -> None:
    part = own_part(module)
    against = parts_imported(read(module), dotted_name(module)) - {part} - MAY_IMPORT[part]
    assert against == set(), f"{name_of(module)} must not import {sorted(against)}"


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_no_import_hides_from_the_table(module: Path) -> None:
    lines = read_imports(read(module), dotted_name(module)).unreadable
    assert not lines or name_of(module) in DYNAMIC, f"{name_of(module)}: imports by a computed name at {sorted(lines)}"


def test_every_part_stands_in_the_table_above_those_that_import_it() -> None:
    assert {own_part(module) for module in MODULES} == set(MAY_IMPORT)
    above: set[str] = set()
    for part, others in MAY_IMPORT.items():
        assert others <= above, f"{part}: {sorted(others - above)} must stand above it"
        above.add(part)


def test_there_is_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        part = own_part(module)
        graph.setdefault(part, set()).update(parts_imported(read(module), dotted_name(module)) - {part})
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError


PLANTED = {
    "statement": "from llmxai.report import export",
    "in a function": "def late():\n    import llmxai.report.export as page\n    return page",
    "for types alone": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from llmxai.report import ReportView",
    "through the root": "import llmxai\nllmxai.report.export",
    "import_module": "import importlib\nimportlib.import_module('llmxai.report')",
    "import_module, renamed": "from importlib import import_module as late\nlate('llmxai.report.export')",
    "__import__": "__import__('llmxai.report')",
    "by a name in a table": "HOMES = {'export': 'llmxai.report.export'}",
    "attached": "import lazy_loader as lazy\nlazy.attach(__name__, submod_attrs={'report.export': ['export']})",
    "attached as a module": "from lazy_loader import attach\nattach(__name__, ['report'])",
}
HIDDEN = {
    "computed": "import importlib\nimportlib.import_module(f'llmxai.{name}')",
    "of a variable": "from importlib import import_module\nimport_module(name)",
    "relative": "import importlib\nimportlib.import_module('.report', 'llmxai')",
    "__import__": "__import__('llmxai.' + name)",
    "attached, computed": "import lazy_loader\nlazy_loader.attach(__name__, submod_attrs=TABLE)",
    "attached elsewhere": "import lazy_loader\nlazy_loader.attach('llmxai', ['report'])",
    "resolved": "from pkgutil import resolve_name\nresolve_name('llmxai.report:export')",
    "run": "import runpy\nrunpy.run_module('llmxai.report')",
    "as text": "exec('import llmxai.report')",
}


@pytest.mark.parametrize("text", PLANTED.values(), ids=PLANTED)
def test_the_table_has_teeth(text: str) -> None:
    """Each of these in llmxai/types.py, or in the root for what is attached, is an import of llmxai.report."""
    module = "llmxai" if "attach" in text else "llmxai.types"
    assert "report" in parts_imported(text, module)
    assert not read_imports(text, module).unreadable
    assert "report" not in MAY_IMPORT["types"]
    assert "report" not in MAY_IMPORT["methods"]


@pytest.mark.parametrize("text", HIDDEN.values(), ids=HIDDEN)
def test_an_import_that_hides_is_found(text: str) -> None:
    assert read_imports(text, "llmxai.types").unreadable


def test_what_is_attached_is_seen() -> None:
    assert parts_imported(read(PACKAGE / "__init__.py"), "llmxai") >= {"explain", "methods", "models", "save", "store"}
    assert (
        "llmxai.evidence.verifier.check"
        in read_imports(read(PACKAGE / "evidence/__init__.py"), "llmxai.evidence").names
    )
    assert parts_imported(read(PACKAGE / "explain.py"), "llmxai.explain") >= {
        "crosscheck",
        "methods",
        "models",
        "types",
    }


def home_of(name: str) -> str:
    """The package that a dotted name belongs to; a top-level module is one of its own."""
    while name not in module_names():
        name = name.rpartition(".")[0]
    parent = name.rpartition(".")[0]
    return name if parent in ("", "llmxai") or name in map(dotted_name, PACKAGES) else parent


def private_of_others(text: str, module: Path) -> set[str]:
    """Imported names with an underscore that belong to another package than the module's own."""
    own = home_of(dotted_name(module))
    names = read_imports(text, dotted_name(module)).names
    private = {n for n in names if any(p.startswith("_") and not p.endswith("__") for p in n.split("."))}
    return {name for name in private if home_of(name) != own}


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_what_has_an_underscore_stays_in_its_package(module: Path) -> None:
    assert private_of_others(read(module), module) == set()


def test_underscores_have_teeth() -> None:
    inside, outside = PACKAGE / "models" / "check.py", PACKAGE / "explain.py"
    for text in (
        "from llmxai.models.memory import _depth",
        "from llmxai.models import memory\nmemory._depth",
        "import llmxai.models.memory as m\ndef late():\n    return m._depth(m)",
        "from llmxai.models._secret import plain",
    ):
        assert private_of_others(text, outside), text
        assert not private_of_others(text, inside), text
        assert private_of_others(text, PACKAGE / "models" / "adapters" / "causal.py"), text
    assert private_of_others("from llmxai.inputs import _ids", outside)
    assert not private_of_others("from llmxai import __version__", outside)


def test_there_are_few_modules() -> None:
    assert len(MODULES) <= MOST_MODULES


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_modules_and_functions_are_short(module: Path) -> None:
    text = read(module)
    assert len(text.splitlines()) <= LONGEST_MODULE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            documented = ast.get_docstring(node) is not None
            body = node.body[1:] if documented and len(node.body) > 1 else node.body
            lines = body[-1].end_lineno - body[0].lineno + 1
            assert lines <= LONGEST_FUNCTION, f"{module.name}: {node.name} has {lines} lines"


@pytest.mark.parametrize("package", [dotted_name(path) for path in PACKAGES])
def test_every_public_name_resolves(package: str) -> None:
    module = importlib.import_module(package)
    names = list(getattr(module, "__all__", []))
    assert len(set(names)) == len(names)
    assert [name for name in names if not hasattr(module, name)] == []


def names_for_types(text: str) -> set[str]:
    """What a package imports under `if TYPE_CHECKING:`."""
    blocks = [node for node in ast.parse(text).body if isinstance(node, ast.If)]
    checked = [block for block in blocks if isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"]
    imports = [node for block in checked for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name for node in imports for alias in node.names}


@pytest.mark.parametrize("path", [path for path in PACKAGES if ATTACH in read(path)], ids=name_of)
def test_what_is_attached_is_public_and_known_to_the_type_checker(path: Path) -> None:
    module = importlib.import_module(dotted_name(path))
    assert set(module.__dir__()) == set(module.__all__) == names_for_types(read(path))


def test_what_is_public() -> None:
    assert llmxai.__all__ == [
        "METHODS",
        "AttentionRollout",
        "Certificate",
        "Compute",
        "CrossCheck",
        "Decoding",
        "Effects",
        "Explanation",
        "Generation",
        "IntegratedGradients",
        "LlmxaiError",
        "LoadedModel",
        "Removal",
        "Role",
        "Scores",
        "Settings",
        "Source",
        "Status",
        "TokenView",
        "Tolerance",
        "UserError",
        "answer",
        "attention_rollout",
        "compare_full",
        "explain",
        "explain_many",
        "layer_integrated_gradients",
        "leave_one_out",
        "load",
        "load_explanation",
        "save",
        "wrap",
    ]
    assert all(hasattr(llmxai, name) for name in llmxai.__all__)
    assert callable(llmxai.explain)
    assert importlib.import_module("llmxai.explain").explain is llmxai.explain  # and not the module of that name
    with pytest.raises(AttributeError, match="attribute nothing"):
        _ = llmxai.nothing


def test_what_is_made_of_an_explanation_is_entered_by_the_root() -> None:
    """The data imports neither page nor folder: it looks up what llmxai has entered."""
    tree = ast.parse(read(PACKAGE / "explanation.py"))
    looked_up = {
        node.slice.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "OUTLETS"
        if isinstance(node.slice, ast.Constant)
    }
    assert looked_up == set(OUTLETS)
    assert all(map(callable, OUTLETS.values()))


TORCHLESS = [
    *("llmxai", "llmxai.cli", "llmxai.commands", "llmxai.environment", "llmxai.errors", "llmxai.evidence"),
    *("llmxai.names", "llmxai.report", "llmxai.settings", "llmxai.stats", "llmxai.store", "llmxai.text"),
]


@pytest.mark.parametrize("module", TORCHLESS)
def test_what_needs_no_torch_does_not_import_it(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'pandas'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_table_of_methods() -> None:
    assert {"attention_rollout", "layer_integrated_gradients", "random", "recency", "saliency"} <= set(llmxai.METHODS)
    public = {value for name in llmxai.methods.__all__ if callable(value := getattr(llmxai.methods, name))}
    entered = {variant.name for variant in VARIANTS}  # rows of a table, which have no function of their own
    assert {*variant_names(), *entered} <= set(llmxai.METHODS)
    for entry in llmxai.METHODS.values():
        assert entry.function in public or entry.name in entered
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
