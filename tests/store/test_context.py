"""Documents, turns and character spans in a stored explanation."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import llmxai
from llmxai import Explanation, IntegratedGradients, Removal, Settings, explain
from llmxai.errors import OutputError
from llmxai.report.export import export
from llmxai.report.render import render_report
from llmxai.report.view import build_view
from llmxai.report.visible import nats, plain
from llmxai.settings import DeletionPath
from llmxai.store import read_document, to_json, to_maps, write_folder
from llmxai.store.context import OWN_MEMORY, own_memory
from llmxai.store.schema import validated
from tests.tiny import make_loaded

DOCUMENTS = [
    {"title": "Cities", "text": "  The capital of France is Paris.  The capital of Italy is Rome. A person asked.  "},
    {"title": "Cities", "text": "The answer was short. Hello there, how are you today? " * 3},
    {"text": "You are a helpful assistant.\n\nHello there. The city was red, blue and green. " * 2},
]
QUICK = Settings(gradients=IntegratedGradients(n_steps=2), deletion=DeletionPath(n_steps=2), removal=Removal(subsets=8))


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    messages = [{"role": "user", "content": "Which city is the capital of France?"}]
    loaded = make_loaded("llama", max_position_embeddings=1024)
    return explain(loaded, messages, documents=DOCUMENTS, response=" Paris, Rome", settings=QUICK)


@pytest.fixture(scope="module")
def document(explanation: Explanation) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(json.dumps(to_json(explanation), allow_nan=False))
    return stored


def test_keys(document: dict[str, Any]) -> None:
    keys = {
        "documents": "title kind share effect interval alone deleted divergence tokens part",
        "spans": "document start end text kind effect tokens",
    }
    text = (Path(llmxai.__file__).parents[1] / "docs" / "explanation-folder.md").read_text(encoding="utf-8")
    for name, expected in keys.items():
        assert sorted(document[name][0]) == sorted(expected.split())
    for key in [*document["context"], *document["documents"][0], *document["spans"][0]]:
        assert key in text


def test_documents_are_told_apart_by_title(document: dict[str, Any]) -> None:
    rows = document["documents"]
    assert [row["title"] for row in rows] == ["Cities", "Cities (2)", "Document 3", "turn 1 (user)"]
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    for row in rows:
        assert row["interval"][0] <= row["effect"] <= row["interval"][1]
        assert row["share"] >= 0


def test_spans_are_characters_of_the_original_text(explanation: Explanation, document: dict[str, Any]) -> None:
    texts = {"Cities": DOCUMENTS[0]["text"], "Cities (2)": DOCUMENTS[1]["text"], "Document 3": DOCUMENTS[2]["text"]}
    texts["turn 1 (user)"] = "Which city is the capital of France?"
    assert {span["document"] for span in document["spans"]} == set(texts)
    for span in document["spans"]:
        assert texts[span["document"]][span["start"] : span["end"]] == span["text"]
        assert span["text"] == span["text"].strip() != ""
    effects = [span["effect"] for span in document["spans"]]
    assert effects == sorted(effects, reverse=True)
    whole = next(span for span in document["spans"] if span["document"] == "Cities" and span["kind"] == "document")
    assert whole["text"] == DOCUMENTS[0]["text"].strip()
    context = explanation.effects.context if explanation.effects else None
    assert context is not None
    assert whole["effect"] == pytest.approx(float(context.drop[0]), abs=1e-5)


def test_every_character_of_the_documents_is_in_a_span(document: dict[str, Any]) -> None:
    for title, text in (("Cities", DOCUMENTS[0]["text"]), ("Document 3", DOCUMENTS[2]["text"])):
        inside = {i for s in document["spans"] if s["document"] == title for i in range(s["start"], s["end"])}
        assert [text[i] for i in range(len(text)) if i not in inside and not text[i].isspace()] == []


def test_the_page_shows_documents_opened_to_their_sentences(explanation: Explanation, document: dict[str, Any]) -> None:
    view = build_view(document, to_maps(explanation)).context
    assert view is not None
    titles = [plain(row.title) for row in view.rows]
    by_effect = sorted(document["documents"], key=lambda row: -abs(row["effect"]))
    assert titles == [row["title"] for row in by_effect]
    assert any(row.pieces for row in view.rows)
    for row, want in zip(view.rows, by_effect, strict=True):
        assert row.effect == nats(want["effect"])
        low, high = want["interval"]
        assert row.interval == ("" if low == high else f"{nats(low)} to {nats(high)}")
    page = render_report(build_view(document, to_maps(explanation)))
    assert "Documents and turns" in page
    assert "The capital of France is Paris." in page


def test_the_page_counts_what_was_not_split(explanation: Explanation, document: dict[str, Any]) -> None:
    for rest, begins in (([], ""), ([0], "One part was not split: it alone"), ([0, 1], "2 parts were not split: each")):
        changed = {**document, "context": {**document["context"], "rest": rest}}
        view = build_view(changed, to_maps(explanation)).context
        assert view is not None
        assert view.rest.startswith(begins)
        assert bool(view.rest) == bool(rest)


def test_the_page_of_a_prompt_of_one_turn_has_no_such_table() -> None:
    found = explain(make_loaded("llama"), "The capital of France is", response=" Paris", settings=QUICK)
    view = build_view(json.loads(json.dumps(to_json(found))), to_maps(found))
    assert view.context is None
    assert "Documents and turns" not in render_report(view)


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_spans_and_documents_are_exported(
    explanation: Explanation, document: dict[str, Any], tmp_path: Path, ending: str
) -> None:
    folder = write_folder(explanation, tmp_path / "a", render=lambda *_: "<html></html>")
    for table in ("spans", "documents"):
        file = tmp_path / f"{table}.{ending}"
        assert export(folder, file, table=table) == len(document[table])
        if ending == "json":
            rows = json.loads(file.read_text(encoding="utf-8"))
        elif ending == "csv":
            rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8-sig"))))
        else:
            rows = pq.read_table(file).to_pylist()
        for row, want in zip(rows, document[table], strict=True):
            assert row["record"] == "a"
            assert (int(row["first"]), int(row["last"])) == tuple(want["tokens"])
            for key in ("document", "start", "end", "title", "kind", "effect", "share"):
                if key in want:
                    assert str(row[key]) == str(want[key])


def test_a_short_prompt_has_spans_and_no_documents() -> None:
    found = to_json(explain(make_loaded("llama"), "The capital of France is", response=" Paris", settings=QUICK))
    assert found["documents"] == []
    assert found["context"] is None
    assert sorted(span["text"] for span in found["spans"]) == ["France", "The", "capital", "is", "of"]
    assert {span["document"] for span in found["spans"]} == {"prompt"}


def test_nothing_removed_means_no_spans() -> None:
    settings = Settings(gradients=QUICK.gradients, deletion=QUICK.deletion, removal=None)
    found = to_json(explain(make_loaded("llama"), "The capital of France is", response=" Paris", settings=settings))
    assert (found["documents"], found["spans"], found["context"]) == ([], [], None)


def test_a_stored_explanation_comes_back(explanation: Explanation, tmp_path: Path) -> None:
    folder = write_folder(explanation, tmp_path / "a", render=lambda *_: "<html></html>")
    back = llmxai.load_explanation(folder)
    assert back == explanation
    assert back.effects is not None
    assert explanation.effects is not None
    before, after = explanation.effects.context, back.effects.context
    assert before is not None
    assert after is not None
    assert torch.equal(before.drop, after.drop)
    assert [(one.kind, one.tokens, one.part) for one in before.pieces] == [
        (one.kind, one.tokens, one.part) for one in after.pieces
    ]
    assert torch.equal(before.divergence_all, after.divergence_all)


def test_own_memory_is_what_the_context_does_not_change(explanation: Explanation, document: dict[str, Any]) -> None:
    context = explanation.effects.context if explanation.effects else None
    assert context is not None
    below = [t for t, nats in enumerate(context.divergence_all.tolist()) if nats < OWN_MEMORY]
    assert own_memory(context) == below == document["context"]["own_memory"]["tokens"]


FAULTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no roots": lambda c: c.update(roots=0),
    "too many roots": lambda c: c.update(roots=99),
    "a piece of no part": lambda c: c["pieces"][0].update(part=99),
    "a piece beyond the prompt": lambda c: c["pieces"][0].update(tokens=[0, 99_999]),
    "a list too short": lambda c: c["f_without"].pop(),
    "a row too short": lambda c: c["divergence"][0].pop(),
    "too few rows": lambda c: c["divergence"].pop(),
    "a context without root": lambda c: c.update(context=[77]),
    "a rest without piece": lambda c: c.update(rest=[777]),
    "memory without token": lambda c: c["own_memory"].update(tokens=[99]),
    "no interval": lambda c: c["low"].pop(),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_context_that_does_not_fit_is_refused(document: dict[str, Any], fault: str) -> None:
    changed = json.loads(json.dumps(document))
    assert validated(changed)["context"] == document["context"]
    FAULTS[fault](changed["context"])
    with pytest.raises(ValueError, match="context"):
        validated(changed)


def test_folders_of_earlier_versions_have_none_of_it(explanation: Explanation, tmp_path: Path) -> None:
    folder = write_folder(explanation, tmp_path / "a", render=lambda *_: "<html></html>")
    stored = json.loads((folder / "explanation.json").read_text(encoding="utf-8"))
    for key in ("documents", "spans", "context"):
        del stored[key]
    (folder / "explanation.json").write_text(json.dumps(stored), encoding="utf-8")
    assert not {"documents", "spans", "context"} & read_document(folder).keys()
    back = llmxai.load_explanation(folder)
    assert back.effects is not None
    assert back.effects.context is None
    (folder / "explanation.json").write_text(json.dumps({**stored, "spans": [1]}), encoding="utf-8")
    with pytest.raises(OutputError, match="spans"):
        read_document(folder)
