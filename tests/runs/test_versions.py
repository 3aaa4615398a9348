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
from llmxai.runs.scheduling import Plan

EVALUATE = {
    "methods": [
        {"method": "saliency", "options": {}, "label": None},
        {"method": "deep_lift", "options": {}, "label": None},
    ],
    "metrics": ["planted", "aopc", "top_k", "lds"],
    **{"target": "first", "removal": "delete", "masks": 8, "samples": 8, "points": 10, "resamples": 50, "seed": 0},
}


LATER = (
    *("target", "documents", "document_spans"),
    *("tools", "chat_template_kwargs", "continue_final_message"),
)
"""Fields of a row that version 1 did not have."""


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


class Silent:
    """In place of what keeps the manifest of a run's files."""

    def __init__(self, _log: object) -> None:
        pass

    def changing(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def then(data: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run as version 1 left it: its keys and its recipe, and a log that says nothing of other files."""
    out = tmp_path_factory.mktemp("then") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llmxai.runs.scheduling.decisive", lambda _recipe: decisive_then(model_folder))
        patch.setattr("llmxai.runs.scheduling.decisive_in_version_1", lambda _recipe: None)
        patch.setattr("llmxai.evidence.Draft.entering", lambda draft, _path, _data: draft)
        patch.setattr("llmxai.runs.runner.Vouching", Silent)
        patch.setattr("llmxai.runs.runner.Plan", lambda *known: Plan(*known[:6]))  # of the weights alone
        assert run_recipe(make_recipe(model_folder), out, root=data).ok == N - 1
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["recipe"] |= {key: decisive_then(model_folder)[key] for key in ("version", "decoding", "explain")}
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def test_the_keys_are_those_of_version_1(then: Path, data: Path, model_folder: Path) -> None:
    """Put together here as it did, so that no change of ours goes unseen."""
    digest = json.loads((then / "manifest.json").read_text())["environment"]["model"]["digest"]
    for row in recipe_rows(make_recipe(model_folder), root=data):
        kept = {name: value for name, value in asdict(row).items() if name not in LATER}
        parts = {"row": kept, "model": digest, "settings": decisive_then(model_folder)}
        text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=list)
        entry = json.loads((then / "ledger" / f"{row.id}.json").read_text())
        assert entry["key"] == hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


@pytest.fixture
def old(then: Path, tmp_path: Path) -> Path:
    """Such a run of one's own."""
    return Path(shutil.copytree(then, tmp_path / "run"))


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
