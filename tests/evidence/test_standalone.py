"""The verifier runs where nothing but the standard library and `cryptography` can be imported."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import zipapp
from pathlib import Path

import pytest
from logs import KEY, make_run

from llmxai.evidence.keys import public_pem

VERIFIER = Path(__file__).parents[2] / "llmxai" / "evidence" / "verifier"

BLOCKED = """
import runpy, sys
before = set(sys.modules)
class Block:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in {known!r}:
            raise ImportError(f"blocked: {{name}}")
        return None
sys.meta_path.insert(0, Block())
sys.argv = ["verifier", *{arguments!r}]
try:
    runpy.run_path({verifier!r}, run_name="__main__")
finally:
    foreign = [name for name in set(sys.modules) - before if name.partition(".")[0] not in sys.stdlib_module_names]
    print("imported:", sorted(foreign), file=sys.stderr)
"""


KNOWN = ("cryptography", "_cffi_backend", "cffi", "llmxai", "__main__")


def start(verifier: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    code = BLOCKED.format(arguments=[str(each) for each in arguments], verifier=str(verifier), known=KNOWN)
    command = [sys.executable, "-I", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_run(tmp_path / "run", 3)
    (tmp_path / "k.pub").write_bytes(public_pem(KEY.public_key()))
    return tmp_path / "run"


def imported(ended: subprocess.CompletedProcess[str]) -> set[str]:
    return set(ast.literal_eval(ended.stderr.splitlines()[-1].removeprefix("imported: ")))


@pytest.mark.parametrize("how", ["in place", "copied", "zipped"])
def test_alone_it_finds_what_the_command_finds(run: Path, tmp_path: Path, how: str) -> None:
    verifier = VERIFIER
    if how == "copied":
        verifier = tmp_path / "elsewhere"
        shutil.copytree(VERIFIER, verifier, ignore=shutil.ignore_patterns("__pycache__"))
    if how == "zipped":
        verifier = tmp_path / "verify.pyz"
        zipapp.create_archive(VERIFIER, verifier)
    ended = start(verifier, run, "--pubkey", tmp_path / "k.pub", "--json")
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["verdict"] == "whole"
    allowed = {"llmxai", "cryptography", "_cffi_backend", "_openssl"}
    assert {name.partition(".")[0] for name in imported(ended)} <= allowed
    ours = {name for name in imported(ended) if name.startswith("llmxai")} - {"llmxai", "llmxai.evidence"}
    assert all(name.startswith("llmxai.evidence.verifier") for name in ours)
    (run / "files" / "1.txt").write_text("another")
    ended = start(verifier, run, "--pubkey", tmp_path / "k.pub", "--json")
    assert ended.returncode == 1
    assert json.loads(ended.stdout)["first_bad"]["seq"] == 1


def test_a_key_that_cannot_be_read_ends_with_2(run: Path, tmp_path: Path) -> None:
    ended = start(VERIFIER, run, "--pubkey", tmp_path / "missing")
    assert ended.returncode == 2
    assert "missing" in ended.stderr


def test_its_files_import_nothing_else() -> None:
    for path in VERIFIER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            for name in names:
                top = name.partition(".")[0]
                assert top in sys.stdlib_module_names or top == "cryptography" or "evidence.verifier" in name, name


@pytest.mark.parametrize("how", ["alone", "the command"])
def test_a_reader_that_leaves_changes_neither_the_verdict_nor_what_is_printed(run: Path, how: str) -> None:
    """As `| head -1` does."""
    tool = [sys.executable, VERIFIER] if how == "alone" else [sys.executable, "-m", "llmxai", "verify"]
    for options, code in (([], 0), (["--json"], 0), ([], 1)):
        if code:
            (run / "files" / "1.txt").write_text("another")
        reader, writer = os.pipe()
        os.close(reader)
        command = list(map(str, [*tool, run, *options]))
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment, check=False, text=True)
        os.close(writer)
        assert (ended.returncode, ended.stderr) == (code, "")
