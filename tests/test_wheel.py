"""What a user installs: the wheel, in an environment and a folder that know nothing of the checkout."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from needed import needed

import llmxai
from llmxai.runs import recipe_names

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("llmxai", "recipes", "pyproject.toml", "setup.py", "README.md", "LICENSE")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel is made of, apart from the checkout, which a build would write into."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder


def built(checkout: Path, kind: str, out: Path) -> Path:
    """The archive of a kind (`wheel` or `sdist`) as the build backend makes it."""
    code = f"from setuptools.build_meta import build_{kind}; print(build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(checkout, "wheel", tmp_path_factory.mktemp("dist"))


def test_the_wheel_holds_all_that_is_read_at_run_time(wheel: Path) -> None:
    """Every file of the package that is not its code, every recipe with its data, and the licence."""
    names = set(zipfile.ZipFile(wheel).namelist())
    package = Path(llmxai.__file__).parent
    inside = {path.relative_to(package.parent).as_posix() for path in package.rglob("*") if path.is_file()}
    inside = {name for name in inside if "__pycache__" not in name}
    recipes = {
        f"llmxai/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "recipes").rglob("*") if path.is_file()
    }
    assert inside | recipes <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith(("tests", "recipes", "docs")) for name in names)


def test_a_source_archive_makes_the_same_wheel(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    archive = built(checkout, "sdist", tmp_path)
    with tarfile.open(archive) as packed:
        if hasattr(tarfile, "data_filter"):  # Python 3.11.4 and later
            packed.extraction_filter = tarfile.data_filter
        packed.extractall(tmp_path / "source")
    (source,) = (tmp_path / "source").iterdir()
    again = built(source, "wheel", tmp_path)
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_its_metadata_is_complete(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Author"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert {line.split(",")[0] for line in metadata.get_all("Project-URL", [])} == set(PROJECT["urls"])
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])


def test_the_readme_renders_away_from_the_repository() -> None:
    """Its links and pictures are absolute, below the project's own address, and lead to files of the repository."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    source = PROJECT["urls"]["Source"]
    raw = source.replace("https://github.com/", "https://raw.githubusercontent.com/")
    pictures = [link for link in links if link.startswith(raw)]
    assert pictures
    for link in links:
        assert link.startswith((f"{source}/blob/main/", f"{source}/tree/main/", f"{raw}/main/")), link
        assert (ROOT / re.sub(r"^.*?/main/", "", link)).exists(), link


def test_the_repository_has_one_address() -> None:
    """Whatever file names it; the other addresses of the package are below it."""
    source = PROJECT["urls"]["Source"]
    owner = source.rpartition("/")[0]
    files = [
        *(ROOT / name for name in ("README.md", "CITATION.cff", "mkdocs.yml", "SECURITY.md", "CONTRIBUTING.md")),
        *(path for folder in ("docs", ".github", "llmxai") for path in (ROOT / folder).rglob("*") if path.is_file()),
    ]
    found = {
        (path.name, address)
        for path in files
        if path.suffix in (".md", ".cff", ".yml", ".yaml", ".py", ".j2", ".ipynb")
        for address in re.findall(rf"{re.escape(owner)}/[\w.-]+", path.read_text(encoding="utf-8"))
    }
    assert {name for name, _ in found} >= {"README.md", "CITATION.cff", "mkdocs.yml"}
    assert {(name, address) for name, address in found if address.rstrip(".") != source} == set()
    assert all(address.startswith(source) for address in PROJECT["urls"].values())


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert citation["repository-code"] == PROJECT["urls"]["Source"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem
)
def test_issue_templates_are_forms(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.stem == "config":
        assert all(link["url"].startswith(PROJECT["urls"]["Source"]) for link in form["contact_links"])
        return
    assert {"name", "description", "body"} <= form.keys()
    ids = [field["id"] for field in form["body"] if field["type"] != "markdown"]
    assert len(set(ids)) == len(ids) > 0


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The commands of a new environment with the wheel and what it depends on, and nothing else.

    The versions are those of the locks: so pip resolves nothing and takes what it has in its cache.
    """
    folder = tmp_path_factory.mktemp("user") / "env"
    venv.create(folder, with_pip=True)
    locks = [ROOT / "locks" / name for name in ("runtime.lock", "model.lock")]
    environment = outside() | {"PIP_OPTIONS": "--no-compile"}  # Python compiles what it imports, which is far less
    done = subprocess.run(
        [ROOT / "locks" / "install.sh", folder, *locks], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        needed(f"pip cannot install {locks[0].name}: {done.stderr[-400:]}", "setup")
    # with --no-index, pip refuses a wheel that depends on anything that is not there by now
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-index", wheel]
    subprocess.run(pip, env=outside(), check=True)
    yield folder / "bin"
    shutil.rmtree(folder)


def outside() -> dict[str, str]:
    """The variables of this process without those that would lead into the checkout."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LLMXAI_R"))}


def user(installed: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(installed / arguments[0]), *arguments[1:]],
        cwd=cwd,
        env=outside() | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_a_user_explains_runs_and_verifies(installed: Path, tmp_path: Path) -> None:
    where = user(installed, "python", "-c", "import llmxai; print(llmxai.__file__)", cwd=tmp_path).stdout
    assert Path(where).is_relative_to(installed.parent)
    search = "import importlib.util as own; print([name for name in ('pytest', 'mypy') if own.find_spec(name)])"
    assert user(installed, "python", "-c", search, cwd=tmp_path).stdout == "[]\n"  # nothing of this environment
    listed = user(installed, "llmxai", "recipes", "ls", cwd=tmp_path).stdout
    assert recipe_names(ROOT / "recipes").keys() <= {line.split(maxsplit=1)[0] for line in listed.splitlines()}
    user(installed, "llmxai", "recipes", "validate", "smoke", "questions", cwd=tmp_path)
    options = ("--max-new-tokens", "2", "--max-nodes", "8", "--set", "removal.subsets=8")
    explained = user(installed, "llmxai", "explain", "Which city is the capital of France?", *options, cwd=tmp_path)
    assert explained.stdout.splitlines()[-1] == "report: runs/explanation/report.html"
    page = (tmp_path / "runs" / "explanation" / "report.html").read_text(encoding="utf-8")
    assert all(word in page for word in ("Which", "city", "capital", "France"))
    less = ("data.0.limit=1", "data.1.limit=1", "evaluate.metrics=[planted,lds]", "evaluate.masks=4")
    less += ("explain.gradients.max_nodes=8", "explain.deletion.max_nodes=8", "explain.removal.subsets=4")
    less += ("evaluate.methods.0.options.max_nodes=8",)
    settings = [part for setting in less for part in ("--set", setting)]
    ran = user(installed, "llmxai", "run", "smoke", *settings, "--progress", "none", cwd=tmp_path)
    assert ran.stdout.splitlines() == ["rows: 2 done, 0 failed", "index: runs/smoke/index.html"]
    assert (tmp_path / "runs" / "smoke" / "evaluation.html").exists()
    for folder in ("runs/explanation", "runs/smoke"):
        assert "whole" in user(installed, "llmxai", "verify", folder, cwd=tmp_path).stdout
