"""The lock files, the bill of materials and the release: what is pinned, and to which file."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from needed import needed

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "locks"
FILES = [ROOT / "requirements.lock", *sorted(LOCKS.glob("*.lock"))]


@pytest.fixture(scope="module")
def lock() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lock", LOCKS / "lock.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hashes(block: str) -> set[str]:
    return set(re.findall(r"--hash=sha256:([0-9a-f]{64})(?=\s)", block))


def test_two_versions_of_one_package_are_refused(lock: ModuleType) -> None:
    """The second would take the place of the first, and some Pythons would be left without."""
    old, new = (
        f"one=={version} ; python_full_version {sign} '3.12' \\\n    --hash=sha256:{64 * digit}\n"
        for version, sign, digit in (("1.0", "<", "a"), ("2.0", ">=", "b"))
    )
    assert lock.requirements(old) == {"one": old}
    with pytest.raises(SystemExit, match=r"one==1\.0 for some Pythons or platforms and one==2\.0 for others"):
        lock.requirements(old + new)


def test_there_is_a_lock_file_for_everything_that_is_installed() -> None:
    names = {path.stem for path in FILES}
    assert names == {"requirements", "runtime", "notebook", "bench", "flashtrace", "peers", "model", "tools"}
    assert {path.stem for path in LOCKS.glob("*.in")} == names - {"requirements", "runtime"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_package_has_an_exact_version_and_hashes(lock: ModuleType, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = lock.requirements(text)
    assert lock.HEADER + "".join(found.values()) == text  # nothing else: no index, no option
    for block in found.values():
        assert re.match(r"[A-Za-z0-9_.-]+(\[[\w, -]+\])?==[0-9][\w.!]*( ; .+)? \\\n", block), block
        assert hashes(block)
        assert len(hashes(block)) == len(block.splitlines()) - 1


def test_the_lock_files_agree(lock: ModuleType) -> None:
    assert len(lock.read(*FILES)) > 150
    everywhere = [lock.requirements(path.read_text(encoding="utf-8")) for path in FILES]
    for name in set().union(*everywhere):
        assert len({frozenset(hashes(found[name])) for found in everywhere if name in found}) == 1, name


def test_a_disagreement_is_refused(lock: ModuleType, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"{number}.lock").write_text(f"one=={number} \\\n    --hash=sha256:{'0' * 64}\n")
    with pytest.raises(SystemExit, match=r"2.lock: one==2, and another lock file has one==1"):
        lock.read(tmp_path / "1.lock", tmp_path / "2.lock")


def test_everything_that_the_project_names_is_locked(lock: ModuleType) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]

    def named(lines: list[str]) -> set[str]:
        return {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in lines}  # type: ignore[index]

    development = set(lock.read(ROOT / "requirements.lock"))
    runtime = set(lock.read(LOCKS / "runtime.lock"))
    assert named(project["dependencies"] + extras["dev"]) <= development
    assert named(project["dependencies"] + extras["peft"]) <= runtime
    assert not runtime & {"pytest", "ruff", "mypy", "playwright", "hypothesis"}
    assert named(extras["notebook"]) == named((LOCKS / "notebook.in").read_text().splitlines())
    assert extras["notebook"] == (LOCKS / "notebook.in").read_text().splitlines()
    assert named(extras["notebook"]) <= set(lock.read(LOCKS / "notebook.lock"))


def test_torch_comes_with_the_hashes_of_both_builds(lock: ModuleType) -> None:
    found = lock.read(ROOT / "requirements.lock")
    (plain,), (cpu,) = lock.chosen("torch", found), lock.chosen("torch-cpu", found)
    assert re.match(r"torch==[\d.]+ ", plain)
    assert lock.pin(cpu) == lock.pin(plain) + "+cpu"
    assert not hashes(plain) & hashes(cpu)
    for python in ("311", "312", "313", "314"):
        assert re.search(
            rf"cp{python}-cp{python}-manylinux_2_28_x86_64\.whl$", lock.CPU_WHEELS.read_text(), re.MULTILINE
        )


@pytest.mark.parametrize("cuda", [True, False])
def test_cuda_libraries_are_installed_for_the_cuda_build_alone(
    lock: ModuleType, cuda: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ["filelock", *(['nvidia-nccl-cu13==2.29.7; platform_system == "Linux"'] if cuda else [])]
    monkeypatch.setattr(lock.metadata, "requires", lambda _: wanted)
    found = lock.read(ROOT / "requirements.lock")
    rest = {lock.pin(block).partition("==")[0] for block in lock.chosen("rest", found)}
    assert ("nvidia-nccl-cu13" in rest, "triton" in rest, "torch" in rest) == (cuda, cuda, False)
    assert len(rest) == len(found) - 1 - (0 if cuda else sum(bool(lock.ONLY_CUDA.match(name)) for name in found))


def test_cpu_hashes_of_another_version_are_refused(lock: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"expected the CPU wheels of torch 9\.9"):
        lock.torch_on_cpu("torch==9.9 \\\n    --hash=sha256:0\n")


def test_a_package_with_another_hash_is_not_installed(tmp_path: Path) -> None:
    """What the lock files are for, shown on a wheel of our own: pip takes the file of the hash, and no other."""
    wheel = tmp_path / "one-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("one.py", "")
        archive.writestr("one-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: one\nVersion: 1\n")
        archive.writestr("one-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("one-1.dist-info/RECORD", "")
    right = hashlib.sha256(wheel.read_bytes()).hexdigest()
    outcomes = []
    for digest in (right, "0" * 64):
        (tmp_path / "one.lock").write_text(f"one==1 \\\n    --hash=sha256:{digest}\n")
        command = [*(sys.executable, "-m", "pip", "install", "--require-hashes", "--no-deps", "--no-index")]
        command += ["--find-links", str(tmp_path), "--target", str(tmp_path / digest), "-r", str(tmp_path / "one.lock")]
        outcomes.append(subprocess.run(command, capture_output=True, text=True, check=False, timeout=120))
    assert [ended.returncode for ended in outcomes] == [0, 1]
    assert "DO NOT MATCH THE HASHES" in outcomes[1].stderr


PIP_STANDS_IN = """#!/bin/sh
if [ "$1 $2" != "-m pip" ]; then exec {python} "$@"; fi
for last in "$@"; do :; done
echo "$*" >> {folder}/calls
[ ! -f "$last" ] || sed -n 's/\\[.*]//; s/^\\([A-Za-z0-9._-]*==[^ ]*\\).*/\\1/p' "$last" > {folder}/$(basename "$last")
case $last in */torch-cpu) exit {cpu} ;; esac
"""


def install(folder: Path, cpu: int, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """What locks/install.sh asks pip for, with a pip that writes it down and has a CPU build or not."""
    (folder / "bin").mkdir()
    program = folder / "bin" / "python"
    program.write_text(PIP_STANDS_IN.format(python=sys.executable, folder=folder, cpu=cpu))
    program.chmod(0o755)
    (folder / "calls").touch()
    command = [str(LOCKS / "install.sh"), str(folder), str(ROOT / "requirements.lock"), str(LOCKS / "model.lock")]
    ended = subprocess.run(
        command, env={"PATH": "/usr/bin:/bin", **variables}, capture_output=True, text=True, check=False
    )
    return ended, [line.rpartition("/")[2] for line in (folder / "calls").read_text().splitlines()]


def test_the_cpu_build_is_taken_if_there_is_one(tmp_path: Path, lock: ModuleType) -> None:
    ended, calls = install(tmp_path, cpu=0)
    assert (ended.returncode, calls) == (0, ["torch-cpu", "rest"])
    rest = (tmp_path / "rest").read_text().splitlines()
    found = lock.read(ROOT / "requirements.lock", LOCKS / "model.lock")
    cuda = lock.needs_cuda()  # of the torch that these tests run with
    assert rest == [
        lock.pin(found[name]) for name in found if name != "torch" and (cuda or not lock.ONLY_CUDA.match(name))
    ]


def test_without_a_cpu_build_the_other_is_taken(tmp_path: Path) -> None:
    ended, calls = install(tmp_path, cpu=1)
    assert (ended.returncode, calls) == (0, ["torch-cpu", "torch", "rest"])


def test_an_index_without_the_cpu_build_is_an_error(tmp_path: Path) -> None:
    ended, calls = install(tmp_path, cpu=1, TORCH_INDEX="https://index.example/cpu")
    assert (ended.returncode, calls) == (1, ["torch-cpu"])
    assert "--index-url https://index.example/cpu" in (tmp_path / "calls").read_text()


def test_another_version_of_torch_is_refused_unless_unlocked(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    ended, calls = install(tmp_path / "a", cpu=0, TORCH_VERSION="2.9.1")
    assert (ended.returncode, calls) == (2, [])
    assert "torch 2.9.1 is not in" in ended.stderr
    ended, calls = install(tmp_path / "b", cpu=0, TORCH_VERSION="2.9.1", TORCH_UNLOCKED="1")
    assert ended.returncode == 0
    assert calls[0].endswith("torch==2.9.1")
    assert "without a check of their hashes" in ended.stderr
    rest = (tmp_path / "b" / "rest").read_text()
    assert "transformers==" in rest
    assert not re.search(r"^(torch==|nvidia-|cuda-|triton)", rest, re.MULTILINE)


def test_every_installation_checks_hashes() -> None:
    texts = {path: (ROOT / path).read_text() for path in ("Makefile", "locks/install.sh", "docker/install.sh")}
    assert "LOCKED := $(INSTALL) --require-hashes --no-deps\n" in texts["Makefile"]
    plain = [
        line.strip()
        for text in texts.values()
        for line in text.splitlines()
        if re.search(r"(\$pip|\$\(INSTALL\)) ", line) and "--require-hashes" not in line
    ]
    # llmxai itself, from this folder; and the torch that TORCH_UNLOCKED=1 asks for
    assert [line for line in plain if "--no-build-isolation" not in line] == [
        '$pip --constraint "$folder/names" $index "torch==${TORCH_VERSION:-$version}"'
    ]


@pytest.fixture(scope="module")
def bills(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (ROOT / ".venv-tools" / ".made").exists():
        needed("no CycloneDX generator", "sbom")
    folder = tmp_path_factory.mktemp("sbom")
    command = ["make", "sbom", f"SBOM={folder}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    return folder


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("llmxai", ["runtime", "model"]),
        ("image", ["runtime", "notebook", "model"]),
        ("development", [path.stem for path in FILES]),
    ],
)
def test_the_bill_of_materials_names_every_locked_package(
    lock: ModuleType, bills: Path, name: str, files: list[str]
) -> None:
    bill = json.loads((bills / f"{name}.cdx.json").read_text(encoding="utf-8"))
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "llmxai")
    listed = {
        f"{component['name'].lower().replace('_', '-')}=={component['version']}": {
            digest["content"]
            for reference in component["externalReferences"]
            for digest in reference.get("hashes", [])
            if digest["alg"] == "SHA-256"
        }
        for component in bill["components"]
    }
    locked = lock.read(*(path for path in FILES if path.stem in files))
    assert listed == {lock.pin(block).lower().replace("_", "-"): hashes(block) for block in locked.values()}
    assert all(component["purl"].startswith("pkg:pypi/") for component in bill["components"])
