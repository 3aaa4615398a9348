"""Digests that identify the model, tokenizer and chat template of a computation."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import torch

from llmxai.environment import version_of, versions_of
from llmxai.models.finding import file_digest
from llmxai.models.loading import WEIGHT_PATTERNS, LoadedModel

PACKAGES = ("torch", "transformers", "accelerate", "bitsandbytes", "peft", "numpy", "scipy", "safetensors")


def environment_of(loaded: LoadedModel) -> dict[str, Any]:
    """The environment of an explanation: versions, the model and its digests, the hardware."""
    model = loaded.model
    return {
        "llmxai": version_of("llmxai"),
        "python": platform.python_version(),
        "packages": versions_of(PACKAGES),
        "model": {
            "name": loaded.name,
            "revision": loaded.revision,
            "digest": weights_digest(loaded),
            "architecture": type(model).__name__,
            "parameters": model.num_parameters(),
            "dtype": str(loaded.stored_dtype).removeprefix("torch."),
            "device": str(model.device),
            "quantization": loaded.quantization,
            "adapter": loaded.adapter,
            "attention": model.config._attn_implementation,
            **identity(loaded),
        },
        "hardware": {
            "machine": platform.machine(),
            "cpu": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def weights_digest(loaded: LoadedModel) -> str | None:
    """SHA-256 of the weight file; for several files, SHA-256 over their digests in order of name."""
    if loaded.weight_digest is not None or not loaded.weight_files:
        return loaded.weight_digest
    digests = [file_digest(path) for path in loaded.weight_files]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def identity(loaded: LoadedModel) -> dict[str, Any]:
    """`weight_files` (each with bytes and SHA-256, those of an adapter folder too) and the digests of the tokenizer and
    the chat template."""
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
    """SHA-256 of the tokenizer in the form of `tokenizer.json`, or of its vocabulary if it has no such form."""
    backend = getattr(loaded.tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return _sha256(backend.to_str())
    return _sha256(json.dumps(sorted(loaded.tokenizer.get_vocab().items(), key=lambda item: item[1])))


def _file(path: Path) -> dict[str, Any]:
    return {"path": path.name, "bytes": path.stat().st_size, "sha256": file_digest(path)}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
