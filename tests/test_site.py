"""The documentation as a site, and its notebooks: what is built and executed, and that a broken link stops it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from needed import needed

ROOT = Path(__file__).resolve().parents[1]
SOURCE = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Source"]
MKDOCS = Path(os.environ.get("LLMXAI_SITE_MKDOCS", ROOT / ".venv-site" / "bin" / "mkdocs"))
KERNEL = Path(os.environ.get("LLMXAI_EXCHANGE_PYTHON", ROOT / ".venv-exchange" / "bin" / "python"))
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def build(root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    if not MKDOCS.exists():
        needed("mkdocs is missing", "docs-site")
    command = [MKDOCS, "build", "--strict", "--site-dir", out]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What the site is made of, to be changed."""
    root = tmp_path / "copy"
    for name in ("docs", "reports/README.md", "README.md", "SECURITY.md", "CONTRIBUTING.md", "mkdocs.yml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, root / name)
    for name in ("llmxai", "recipes", "benchmarks", "tests", "locks", "docker", "reports/gallery"):
        (root / name).symlink_to(ROOT / name)
    for name in ("Makefile", "CHANGELOG.md", "Dockerfile"):
        (root / name).symlink_to(ROOT / name)
    return root


def test_the_site_is_whole(copy: Path, tmp_path: Path) -> None:
    done = build(copy, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    pages = {path.relative_to(copy / "docs").with_suffix(".html").as_posix() for path in (copy / "docs").rglob("*.md")}
    pages |= {f"notebooks/{path.stem}.html" for path in NOTEBOOKS}
    built = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    assert pages - {"README.html"} <= built
    index = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert f"{SOURCE}/blob/main/SECURITY.md" in index
    assert 'href="../' not in index


@pytest.mark.parametrize(
    "link",
    ["[gone](gone.md)", "[no such part](verify.md#no-such-part)", "[outside](../gone.md)", "![](images/gone.png)"],
)
def test_a_broken_link_stops_it(copy: Path, tmp_path: Path, link: str) -> None:
    with (copy / "docs" / "which-method.md").open("a", encoding="utf-8") as page:
        page.write(f"\n{link}\n")
    assert build(copy, tmp_path / "site").returncode != 0


def cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_executed(path: Path) -> None:
    """In order, without errors, and without anything of the machine that did it."""
    assert not re.search(r"/(tmp|home|root|work)/", path.read_text(encoding="utf-8"))
    counts = [cell["execution_count"] for cell in cells(path)]
    assert counts == list(range(1, len(counts) + 1))
    kinds = {output["output_type"] for cell in cells(path) for output in cell["outputs"]}
    assert kinds <= {"stream", "execute_result"}
    assert cells(path)[-1]["outputs"]


EXECUTE = """
import json, sys
import nbformat
from nbclient import NotebookClient
book = nbformat.read(sys.argv[1], 4)
NotebookClient(book, timeout=600, kernel_name="python3").execute()
print(json.dumps([len(cell.outputs) for cell in book.cells if cell.cell_type == "code"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_execute(path: Path, tmp_path: Path) -> None:
    if not KERNEL.exists():
        needed("a kernel for notebooks is missing", "exchange")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [KERNEL, "-c", EXECUTE, str(path)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    outputs = json.loads(done.stdout.splitlines()[-1])
    assert len(outputs) == len(cells(path))
    assert outputs[-1] > 0
