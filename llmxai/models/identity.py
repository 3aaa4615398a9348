"""Digests that say which model, tokenizer and template computed something."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from llmxai.models.embedded import file_digest
from llmxai.models.loading import WEIGHT_PATTERNS, LoadedModel


def identity(loaded: LoadedModel) -> dict[str, Any]:
    """`weight_files` (each with bytes and SHA-256, those of an adapter folder too) and the digests of the tokenizer and
    the chat template. A file is hashed once a process while its size and time stay the same."""
    adapter = Path(loaded.adapter) if loaded.adapter else None
    files = list(loaded.weight_files)
    if adapter and adapter.is_dir():
        files += sorted(path for pattern in WEIGHT_PATTERNS for path in adapter.glob(pattern))
    template = loaded.tokenizer.chat_template
    return {
        "weight_files": [_file(path) for path in files],
        "tokenizer_digest": tokenizer_digest(loaded),
        "chat_template_digest": None if template is None else _sha256(json.dumps(template)),
    }


def tokenizer_digest(loaded: LoadedModel) -> str:
    """SHA-256 of the tokenizer as `tokenizer.json` would say it, or of its vocabulary where it has no such form."""
    backend = getattr(loaded.tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return _sha256(backend.to_str())
    return _sha256(json.dumps(sorted(loaded.tokenizer.get_vocab().items(), key=lambda item: item[1])))


def _file(path: Path) -> dict[str, Any]:
    found = path.stat()
    return {"path": path.name, "bytes": found.st_size, "sha256": _digest(path, found.st_size, found.st_mtime_ns)}


@cache
def _digest(path: Path, _size: int, _time: int) -> str:
    return file_digest(path)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
