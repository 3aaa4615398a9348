"""The software environment: llmxai's version and commit, Python, and the relevant packages. Needs no torch."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    *("torch", "transformers", "tokenizers", "accelerate", "bitsandbytes", "peft", "numpy", "scipy", "safetensors"),
    *("cryptography", "securesystemslib", "rfc8785"),
)


@dataclass(frozen=True)
class Tool:
    """The tool that did the work. `commit` and `dirty` describe the source tree, if llmxai runs from one."""

    name: str
    version: str | None
    commit: str | None
    dirty: bool | None
    python: str
    packages: Mapping[str, str | None]


@cache
def version_of(package: str) -> str | None:
    """The installed version, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions_of(packages: Iterable[str]) -> dict[str, str | None]:
    """The installed versions, by package."""
    return {name: version_of(name) for name in packages}


@cache
def this_tool() -> Tool:
    """The running llmxai. Its commit is known if it runs from a git checkout, else None."""
    commit, dirty = _commit(Path(__file__).parents[1])
    return Tool(
        name="llmxai",
        version=version_of("llmxai"),
        commit=commit,
        dirty=dirty,
        python=platform.python_version(),
        packages=versions_of(PACKAGES),
    )


def _commit(source: Path) -> tuple[str | None, bool | None]:
    if not (source / ".git").exists():
        return None, None
    commit = _git(source, "rev-parse", "HEAD")
    changes = _git(source, "status", "--porcelain", "--untracked-files=no")
    return commit, None if changes is None else bool(changes)


def _git(source: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(source), *arguments]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return ended.stdout.strip()
