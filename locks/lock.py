"""The lock files: every package by exact version and by the SHA-256 of each of its files.

    lock.py write [--upgrade]    resolve again from pyproject.toml and locks/*.in with uv, and write every lock file
    lock.py torch FILE           print torch's requirement: the wheels on PyPI (on Linux the CUDA build)
    lock.py torch-cpu FILE       print torch's requirement: the CPU wheels for Linux on PyTorch's own index
    lock.py rest FILE...         print all others, without the CUDA libraries if the torch installed here needs none
    lock.py merge FILE...        print the requirements of several lock files, each once
    lock.py names FILE...        print them without torch, hashes and markers, as constraints

The lock files themselves are for PyPI: `pip install --require-hashes -r requirements.lock` takes the CUDA build.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "locks"
OTHERS = (ROOT / "tests" / "exchange" / "requirements.in", ROOT / "docs" / "requirements.in")
"""Of environments that share nothing with llmxai's own: other tools, and the generator of the site."""
CPU_WHEELS = LOCKS / "torch-cpu.sha256"
ONLY_CUDA = re.compile(r"(nvidia|cuda)-|triton$")
HEADER = "# Written by `make lock`: exact versions, and the SHA-256 of every file that pip may install.\n"


def requirements(text: str) -> dict[str, str]:
    """Of the text of a lock file: every package's name and its requirement with all its hashes.

    One version serves every Python and platform (but for emscripten, which is left out), or it is refused.
    """
    found: dict[str, str] = {}
    for block in re.findall(r"^[A-Za-z0-9](?:.*\\\n)*.*\n", text, flags=re.MULTILINE):
        if "sys_platform == 'emscripten'" in marker(block):
            continue
        name = re.split(r"[^\w.-]", block)[0].lower().replace("_", "-")
        if name in found:
            raise SystemExit(
                f"{pin(found[name])} for some Pythons or platforms and {pin(block)} for others: give {name} a range in "
                f"which one version serves all."
            )
        found[name] = block
    return found


def read(*paths: Path) -> dict[str, str]:
    """The requirements of several lock files. The same package must be locked the same way in each."""
    merged: dict[str, str] = {}
    for path in paths:
        for name, block in requirements(path.read_text(encoding="utf-8")).items():
            if pin(merged.setdefault(name, block)) != pin(block):
                raise SystemExit(f"{path}: {pin(block)}, and another lock file has {pin(merged[name])}.")
    return merged


def pin(block: str) -> str:
    """`name==version`."""
    return re.sub(r"\[.*?\]", "", block).split(maxsplit=1)[0]


def marker(block: str) -> str:
    """When the requirement applies: what follows its semicolon."""
    return block.splitlines()[0].partition(";")[2].strip(" \\")


def resolve(sources: list[str], *options: str, before: Path | None, upgrade: bool) -> dict[str, str]:
    """The packages that `sources` need on any platform, as uv resolves them; versions locked before are kept."""
    uv = Path(sys.executable).with_name("uv")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.lock"
        if before is not None and before.exists():
            out.write_text(before.read_text(encoding="utf-8"), encoding="utf-8")
        subprocess.run(
            [
                *(str(uv), "pip", "compile", *sources, "--output-file", str(out), "--universal", "--quiet"),
                *("--python-version", "3.11", "--generate-hashes", "--no-strip-extras"),
                *("--no-annotate", "--no-header", *options),
                *(["--upgrade"] if upgrade else []),
            ],
            cwd=ROOT,
            check=True,
        )
        return requirements(out.read_text(encoding="utf-8"))


def write(path: Path, blocks: Iterable[str]) -> None:
    path.write_text(HEADER + "".join(blocks), encoding="utf-8")


def lock(upgrade: bool) -> None:
    development = ROOT / "requirements.lock"
    found = resolve(["pyproject.toml"], "--extra", "dev", before=development, upgrade=upgrade)
    torch_on_cpu(found["torch"])  # refuses hashes of another version
    write(development, found.values())
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "pins.txt"
        pins.write_text("".join(f"{pin(block)}\n" for block in found.values()))
        same = ("--constraint", str(pins))
        runtime = resolve(["pyproject.toml"], "--extra", "peft", *same, before=None, upgrade=False)
        write(LOCKS / "runtime.lock", runtime.values())
        for source in [*sorted(LOCKS.glob("*.in")), *OTHERS]:
            path = source.with_suffix(".lock")
            alone = ["--no-deps"] if source.stem == "model" else []  # it names packages that llmxai does not use
            own = [] if source in OTHERS else same
            blocks = resolve([str(source)], *own, *alone, before=path, upgrade=upgrade)
            if source.stem in ("bench", "flashtrace", "peers"):  # installed on top of the others
                blocks = {name: block for name, block in blocks.items() if name not in found}
            write(path, blocks.values())


def torch_on_cpu(block: str) -> str:
    """torch's requirement for the CPU wheels of the same version; they have a version of their own, `+cpu`."""
    version = pin(block).partition("==")[2]
    lines = [line.split() for line in CPU_WHEELS.read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    wrong = [name for _, name in lines if not name.startswith(f"torch-{version}+cpu-")]
    if wrong or not lines:
        raise SystemExit(f"{CPU_WHEELS}: expected the CPU wheels of torch {version}; found {wrong or 'none'}.")
    return " \\\n    ".join([f"torch=={version}+cpu", *(f"--hash=sha256:{digest}" for digest, _ in lines)]) + "\n"


def needs_cuda() -> bool:
    """Whether the torch installed here asks for the CUDA libraries."""
    return any(ONLY_CUDA.match(wanted) for wanted in metadata.requires("torch") or [])


def chosen(command: str, found: dict[str, str]) -> Iterable[str]:
    if command == "torch":
        return [found["torch"]]
    if command == "torch-cpu":
        return [torch_on_cpu(found["torch"])]
    if command == "rest":
        cuda = needs_cuda()
        return [block for name, block in found.items() if name != "torch" and (cuda or not ONLY_CUDA.match(name))]
    if command == "names":
        return [f"{pin(block)}\n" for name, block in found.items() if name != "torch"]
    if command == "merge":
        return found.values()
    raise SystemExit(f"lock.py: {command} is unknown; its first lines say what there is.")


if __name__ == "__main__":
    if sys.argv[1] == "write":
        lock(upgrade="--upgrade" in sys.argv)
    else:
        print("".join(chosen(sys.argv[1], read(*map(Path, sys.argv[2:])))), end="")
