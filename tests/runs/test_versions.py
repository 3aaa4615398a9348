"""A run that was begun with a recipe of version 1 goes on, and what is done in it stays done."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from settings import FAILS, N, make_document, make_recipe
from test_runner import worked_on

from llmxai.errors import OutputError
from llmxai.evidence import verify
from llmxai.runs import Recipe, read_recipe, run_recipe
from llmxai.runs.data import recipe_rows

EVALUATE = {
    "methods": [
        {"method": "saliency", "options": {}, "label": None},
        {"method": "deep_lift", "options": {}, "label": None},
    ],
    "metrics": ["planted", "aopc", "top_k", "lds"],
    **{"target": "first", "removal": "delete", "masks": 8, "samples": 8, "points": 10, "resamples": 50, "seed": 0},
}


def decisive_then(model: Path) -> dict[str, Any]:
    """What version 1 put into every row's key."""
    return {
        "version": 1,
        "model": {
            **{"name": str(model), "dtype": "float32", "device_map": None},
            **{"quantize": None, "revision": None, "adapter": None},
        },
        "decoding": {"max_new_tokens": 64, "temperature": 0.0, "top_p": 1.0, "seed": 0},
        "explain": {"features": "content", "baseline": "space", "tolerance": 0.02, "max_nodes": 16},
        "evaluate": EVALUATE,
    }


def key_then(row: Any, digest: str, model: Path) -> str:
    parts = {"row": asdict(row), "model": digest, "settings": decisive_then(model)}
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=list)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


@pytest.fixture
def old(whole: Path, data: Path, model_folder: Path, tmp_path: Path) -> Path:
    """The finished run as version 1 would have left it: its manifest, and the keys of its rows."""
    out = Path(shutil.copytree(whole, tmp_path / "run"))
    manifest = json.loads((out / "manifest.json").read_text())
    digest = manifest["environment"]["model"]["digest"]
    manifest["recipe"] |= {key: decisive_then(model_folder)[key] for key in ("version", "decoding", "explain")}
    (out / "manifest.json").write_text(json.dumps(manifest))
    for row in recipe_rows(make_recipe(model_folder), root=data):
        path = out / "ledger" / f"{row.id}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"key": key_then(row, digest, model_folder)}))
    return out


def recipe_then(model: Path, folder: Path, **changes: Any) -> Recipe:
    """The recipe of the tests, written in version 1."""
    document = make_document(model) | {"version": 1, "explain": {"max_nodes": 16}} | changes
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return read_recipe(path)


@pytest.mark.parametrize("version", [1, 2])
def test_it_goes_on_with_the_recipe_in_either_version(
    old: Path, data: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    recipe = recipe_then(model_folder, tmp_path) if version == 1 else make_recipe(model_folder)
    before = pq.read_table(old / "rows.parquet")
    (old / "ledger" / "cities-00002.json").unlink()
    worked = worked_on(monkeypatch)
    outcome = run_recipe(recipe, old, root=data)
    assert worked == ["cities-00002"]
    assert (outcome.ok, outcome.failed) == (N - 1, 1)
    manifest = json.loads((old / "manifest.json").read_text())
    assert (manifest["status"], manifest["recipe"]["version"]) == ("finished", 2)
    its_own = ["seconds", "record", "explanation_sha256"]
    assert pq.read_table(old / "rows.parquet").drop_columns(its_own).equals(before.drop_columns(its_own))
    assert verify(old).exit == 0
    worked.clear()
    assert run_recipe(recipe, old, root=data).ok == N - 1
    assert worked == []
    run_recipe(recipe, old, root=data, retry_failed=True)
    assert worked == [f"cities-{FAILS:05d}"]


@pytest.mark.parametrize(
    "explain",
    [
        {"gradients": {"max_nodes": 32}},
        {"gradients": {"max_nodes": 16}, "removal": {"units": "token"}},
        {"gradients": {"max_nodes": 16}, "also": ["saliency"]},
        None,
    ],
)
def test_other_settings_are_another_run(
    old: Path, data: Path, model_folder: Path, explain: dict[str, Any] | None
) -> None:
    with pytest.raises(OutputError, match="holds a run of recipe 'tiny' with another explain"):
        run_recipe(make_recipe(model_folder, explain=explain), old, root=data)


@pytest.mark.parametrize("manifest", ["{", "{}", "[]", '{"recipe": {"version": 1}}', '{"recipe": {"version": 9}}'])
def test_a_manifest_that_is_no_runs(old: Path, data: Path, model_folder: Path, manifest: str) -> None:
    (old / "manifest.json").write_text(manifest)
    with pytest.raises(OutputError, match=r"its manifest\.json is not that of a run") as caught:
        run_recipe(make_recipe(model_folder), old, root=data)
    assert "\n" not in str(caught.value)
