"""Read an explanation's folder back (docs/explanation-folder.md). Needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from llmxai.errors import OutputError

SCHEMA = "llmxai.explanation/2"


def read_folder(folder: Path | str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The parsed explanation.json and the maps; raises OutputError for a folder that is not ours."""
    folder = Path(folder)
    try:
        document = json.loads((folder / "explanation.json").read_text(encoding="utf-8"))
        maps = load_file(folder / "maps.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise OutputError(f"{folder}: no explanation can be read there ({error}).") from error
    if not isinstance(document, dict):
        raise OutputError(f"{folder}: its explanation.json holds a {type(document).__name__}; expected an object.")
    if document.get("schema") != SCHEMA:
        raise OutputError(f"{folder}: its schema is {document.get('schema')!r} and this version reads {SCHEMA!r}.")
    return document, maps
