"""A run on a tiny model: rows that work, and one that cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmxai.evidence.log import read_log
from llmxai.runs import Recipe

N = 6
FAILS = 4


def make_data(folder: Path) -> None:
    lines = [{"name": f"person {i}", "city": ("Paris", "Rome")[i % 2]} for i in range(N)]
    lines[FAILS]["city"] = ""  # an empty answer cannot be explained
    (folder / "cities.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def make_document(model: Path, **changes: Any) -> dict[str, Any]:
    return {
        "version": 2,
        "name": "tiny",
        "model": {"name": str(model), "dtype": "float32"},
        "data": [
            {
                "path": "cities.jsonl",
                "prompt": "The city of {{ name }} is",
                "response": "{{ ' ' ~ city if city else '' }}",
                "sources": ["{{ name }}"],
            }
        ],
        "explain": {"gradients": {"max_nodes": 16}},
        "evaluate": {"methods": [{"method": "saliency"}, {"method": "deep_lift"}], "masks": 8, "resamples": 50},
        **changes,
    }


def records_of(run: Path) -> list[dict[str, Any]]:
    """What the log says of rows and of what became of them, in its order: all but the manifests of the run's files."""
    records = [json.loads(record) for _, record in read_log(run)]
    return [record for record in records if record["kind"] != "manifest"]


def make_recipe(model: Path, **changes: Any) -> Recipe:
    return Recipe.model_validate(make_document(model, **changes))
