"""Digests that identify the model, tokenizer and chat template of a computation."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, PreTrainedConfig

from llmxai.environment import version_of, versions_of
from llmxai.errors import ModelLoadError
from llmxai.models.embedding import input_device
from llmxai.models.finding import file_digest

if TYPE_CHECKING:
    from llmxai.models.loading import LoadedModel

PACKAGES = ("torch", "transformers", "accelerate", "bitsandbytes", "peft", "numpy", "scipy", "safetensors")


@dataclass(frozen=True)
class ModelIdentity:
    """Digests of everything that decides what a model computes: what a ledger, a record and a replay know it by."""

    weights: str | None
    """Of the weight file, or over those of several; None for weights that were only in memory."""
    files: tuple[Mapping[str, Any], ...]
    """Each weight file with bytes and SHA-256; those of an adapter are in `adapter/`."""
    config: str
    tokenizer: str
    special_tokens: str
    chat_template: str | None
    generation_config: str | None
    quantization: str | None
    dtype: str
    remote_code: bool
    """Whether code from the model's folder was allowed to run; its files are among `files`."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all of it."""
        return _sha256(json.dumps(asdict(self), sort_keys=True))


def identify(loaded: LoadedModel) -> ModelIdentity:
    """Read and hash it all; `loaded.identity` keeps it. Raises ModelLoadError if files changed after loading."""
    if loaded.read and loaded.read != stamps((*loaded.weight_files, *loaded.adapter_files)):
        raise ModelLoadError(f"{loaded.name}: its files were changed after they were loaded. Load it again.")
    tokenizer, generation = loaded.tokenizer, getattr(loaded.model, "generation_config", None)
    files = [_file(path, path.name) for path in loaded.weight_files]
    files += [_file(path, f"adapter/{path.name}") for path in loaded.adapter_files]
    template = tokenizer.chat_template
    settings = [getattr(tokenizer, name, None) for name in ("add_bos_token", "add_eos_token")]
    return ModelIdentity(
        weights=weights_digest(loaded),
        files=tuple(files),
        config=_settings_digest(loaded.model.config),
        tokenizer=tokenizer_digest(loaded),
        special_tokens=_sha256(json.dumps([tokenizer.special_tokens_map, settings], sort_keys=True, default=str)),
        chat_template=None if template is None else _sha256(json.dumps(template)),
        generation_config=None if generation is None else _settings_digest(generation),
        quantization=loaded.quantization,
        dtype=str(loaded.stored_dtype).removeprefix("torch."),
        remote_code=loaded.remote_code,
    )


def stamps(paths: Iterable[Path]) -> tuple[tuple[int, int], ...]:
    """Size and time of each file."""
    return tuple((found.st_size, found.st_mtime_ns) for found in (path.stat() for path in paths))


NO_SETTINGS = ("_name_or_path", "transformers_version", "_commit_hash", "dtype", "torch_dtype", "_from_model_config")
"""Of a configuration: where it came from. The dtype is the weights', wherever it was chosen."""


def _settings_digest(config: PreTrainedConfig | GenerationConfig) -> str:
    told = {name: value for name, value in config.to_diff_dict().items() if name not in NO_SETTINGS}
    return _sha256(json.dumps(told, sort_keys=True, default=str))


def environment_of(loaded: LoadedModel) -> dict[str, Any]:
    """The environment of an explanation: versions, the model and its digests, the hardware."""
    model, identity = loaded.model, loaded.identity
    return {
        "llmxai": version_of("llmxai"),
        "python": platform.python_version(),
        "packages": versions_of(PACKAGES),
        "model": {
            "name": loaded.name,
            "revision": loaded.revision,
            "digest": identity.weights,
            "architecture": type(model).__name__,
            "parameters": model.num_parameters(),
            "dtype": identity.dtype,
            "device": str(input_device(model)),
            "quantization": identity.quantization,
            "adapter": loaded.adapter,
            "attention": model.config._attn_implementation,
            "identity": identity.digest,
            "weight_files": [dict(file) for file in identity.files],
            "config_digest": identity.config,
            "tokenizer_digest": identity.tokenizer,
            "chat_template_digest": identity.chat_template,
            "generation_config_digest": identity.generation_config,
            "remote_code": identity.remote_code,
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


def tokenizer_digest(loaded: LoadedModel) -> str:
    """SHA-256 of the tokenizer in the form of `tokenizer.json`, or of its vocabulary if it has no such form."""
    backend = getattr(loaded.tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return _sha256(backend.to_str())
    return _sha256(json.dumps(sorted(loaded.tokenizer.get_vocab().items(), key=lambda item: item[1])))


def _file(path: Path, name: str) -> dict[str, Any]:
    return {"path": name, "bytes": path.stat().st_size, "sha256": file_digest(path)}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
