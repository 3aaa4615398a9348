"""What did the work: llmxai's version and commit, Python, and the packages that matter."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path

from llmxai.evidence.record import Tool
from llmxai.versions import version_of, versions_of

PACKAGES = (
    *("torch", "transformers", "tokenizers", "accelerate", "bitsandbytes", "peft", "numpy", "scipy", "safetensors"),
    *("cryptography", "securesystemslib", "rfc8785"),
)


@cache
def this_tool() -> Tool:
    """The running llmxai. Its commit is known where it runs from a git checkout, and null elsewhere."""
    commit, dirty = _commit(Path(__file__).parents[2])
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
