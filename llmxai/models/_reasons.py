"""Why a model could not be had, in the words of who asked for it."""

from __future__ import annotations

from pathlib import Path

from llmxai.errors import ModelLoadError
from llmxai.models.embedded import EMBEDDED


def not_found(name: str, error: Exception) -> ModelLoadError:
    if name and Path(name).is_dir():
        return ModelLoadError(
            f"{name}: this folder is no model that transformers can read ({first_line(error)}). "
            f"Expected config.json, weights and a tokenizer, as save_pretrained writes them."
        )
    causes = _chain(error)
    if any(type(c).__name__ in ("RepositoryNotFoundError", "GatedRepoError", "HFValidationError") for c in causes):
        return ModelLoadError(
            f"{name}: no model of that name could be read from the hub ({first_line(error)}). Check the spelling, "
            f"log in with `hf auth login` if it is private or gated, or give a local folder or `{EMBEDDED}`."
        )
    return ModelLoadError(
        f"{name}: there is no such folder here, and the model hub could not be reached or does not have it "
        f"({first_line(error)}). Check the name and the network, or give a local folder, a .gguf file, or "
        f"`{EMBEDDED}`, which needs no network."
    )


def _chain(error: BaseException | None) -> list[BaseException]:
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]
