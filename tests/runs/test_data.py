"""Rows out of files and saved data sets, through templates; what cannot be made is that row's own failure."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from llmxai.errors import RecipeError
from llmxai.evaluation import Row
from llmxai.runs.data import FailedRow, count_rows, recipe_rows, source_rows
from llmxai.runs.recipe import Recipe, Source
from llmxai.runs.scheduling import Job

TABLE = [
    {"question": f"Where is {name}?", "hint": "in the garden", "answer": f" {name}", "n": i}
    for i, name in enumerate("abcdef")
]


@pytest.fixture(scope="module", autouse=True)
def quiet_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    datasets.disable_progress_bars()
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("data")
    table = datasets.Dataset.from_list(TABLE)
    (place / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TABLE), encoding="utf-8")
    table.to_csv(place / "q.csv")
    table.to_parquet(place / "q.parquet")
    table.save_to_disk(place / "saved")
    datasets.DatasetDict({"train": table, "test": table.select([4, 5])}).save_to_disk(place / "splits")
    return place


def rows(folder: Path, **settings: object) -> list[Row | FailedRow]:
    settings = {"prompt": "{{ hint }} {{ question }}"} | settings
    return list(source_rows(Source(**settings), root=folder))


@pytest.mark.parametrize("origin", [{"path": "q.jsonl"}, {"path": "q.csv"}, {"path": "q.parquet"}, {"saved": "saved"}])
def test_the_same_rows_from_every_kind(origin: dict[str, str], folder: Path) -> None:
    found = rows(folder, **origin, response="{{ answer }}", sources=["{{ hint }}"], id="row {{ n }}")
    assert [row.id for row in found] == [f"row-{i}" for i in range(6)]
    first = found[0]
    assert isinstance(first, Row)
    assert (first.prompt, first.response) == ("in the garden Where is a?", " a")
    assert first.prompt[slice(*first.spans[0])] == "in the garden"


def test_limit_split_and_order(folder: Path) -> None:
    assert len(rows(folder, path="q.jsonl", limit=2)) == 2
    first = next(iter(rows(folder, saved="splits", split="test")))
    assert isinstance(first, Row)
    assert first.text.endswith("e?")
    plain, one, again, other = (
        [row.text for row in rows(folder, saved="saved", **how) if isinstance(row, Row)]
        for how in ({}, {"shuffle": True}, {"shuffle": True}, {"shuffle": True, "seed": 5})
    )
    assert sorted(plain) == sorted(one) == sorted(other)
    assert one == again
    assert len({tuple(plain), tuple(one), tuple(other)}) == 3
    assert rows(folder, saved="saved")[2].id == "saved-00002"


def test_messages_and_foil(folder: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "{{ question }}"}]
    (row,) = rows(folder, path="q.jsonl", prompt=None, messages=messages, foil=" no", limit=1)
    assert isinstance(row, Row)
    assert row.messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is a?"})
    assert (row.text, row.foil, row.response) == ("Where is a?", " no", None)


def test_spans_from_a_column(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(json.dumps({"q": "red or blue", "spans": [[0, 3], [7, 11]]}), encoding="utf-8")
    (row,) = rows(tmp_path, path="s.jsonl", prompt="{{ q }}", spans="spans")
    assert isinstance(row, Row)
    assert row.spans == ((0, 3), (7, 11))


LIBRARY = [
    {"question": "Where is a?", "documents": [{"title": "A", "text": "a is here."}, {"text": "b is there."}]},
    {"question": "Where is b?", "documents": ["c is gone.", "b is there."]},
    {"question": "Where is c?", "documents": []},
    {"question": "Where is d?", "documents": [{"title": "D", "text": " "}]},
    {"question": "Where is e?", "documents": ["b is there.", "b is there."]},
]


def test_documents_from_a_column(tmp_path: Path) -> None:
    lines = [{**row, "documents": json.dumps(row["documents"])} for row in LIBRARY]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    turns = [{"role": "user", "content": "{{ question }}"}]
    source = Source(path="d.jsonl", messages=turns, documents="documents", sources=["b is there."])
    first, second, empty, blank, twice = source_rows(source, root=tmp_path)
    assert isinstance(first, Row)
    assert isinstance(second, Row)
    assert first.given == {"documents": [{"title": "A", "text": "a is here."}, {"text": "b is there."}]}
    assert first.document_spans == second.document_spans == ((1, 0, 11),)
    assert (first.text, first.spans) == ("Where is a?", ())
    for row, says in ((empty, "holds no documents"), (blank, "is empty"), (twice, "occurs in 2 documents")):
        assert isinstance(row, FailedRow)
        assert says in row.error
    job = Job(0, first, "key", "record", 1, 1)
    assert Job.from_json(job.to_json()) == job


def test_documents_as_a_list_of_objects(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps(LIBRARY[0]) + "\n", encoding="utf-8")
    (row,) = source_rows(Source(path="d.jsonl", prompt="{{ question }}", documents="documents"), root=tmp_path)
    assert isinstance(row, Row)
    assert row.documents[1] == {"text": "b is there."}, "a title that another document has is no title of this one"


CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {"at": "a"}}}]}
TALK = [
    {"talk": [{"role": "user", "content": "Where is a?"}], "tools": [{"name": "look"}], "what": "answer"},
    {
        "talk": [{"role": "user", "content": "And b?"}, CALL, {"role": "tool", "content": "here"}],
        "tools": [],
        "what": "i",
    },
    {"talk": [{"role": "usher", "content": "Where?"}], "tools": [{"name": "look"}], "what": "answer"},
    {"talk": "[1", "tools": [{"name": "look"}], "what": "answer"},
]


@pytest.mark.parametrize("as_text", [False, True])
def test_conversations_tools_and_targets_from_columns(as_text: bool, tmp_path: Path) -> None:
    """Of lists, the reader gives all rows the same keys; what it adds is no part of a conversation."""
    kept = TALK if as_text else TALK[:3]
    lines = [{key: json.dumps(value) if as_text and key != "what" else value for key, value in r.items()} for r in kept]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    source = Source(
        path="t.jsonl",
        messages="talk",
        tools="tools",
        target="{{ what }}",
        chat_template_kwargs={"enable_thinking": True},
    )
    first, no_tools, usher, *broken = source_rows(source, root=tmp_path)
    assert isinstance(first, Row)
    assert first.messages == tuple(TALK[0]["talk"])
    assert first.target == "answer"
    assert first.given == {"tools": [{"name": "look"}], "chat_template_kwargs": {"enable_thinking": True}}
    assert Job.from_json(Job(0, first, "key", "record", 1, 1).to_json()).row == first
    for row, says in zip(
        (no_tools, usher, *broken),
        ("'tools' holds no tools", "has the role 'usher'", "'talk' holds no messages"),
        strict=False,
    ):
        assert isinstance(row, FailedRow)
        assert says in row.error
    source = Source(path="t.jsonl", messages="talk", response="{{ what }}")
    _, second, *_ = source_rows(source, root=tmp_path)
    assert isinstance(second, Row)
    assert second.messages == tuple(TALK[1]["talk"])
    assert second.text == "here"


def test_a_conversation_that_is_continued(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Where is a?"}, {"role": "assistant", "content": "It is"}]
    (tmp_path / "t.jsonl").write_text(json.dumps({"talk": talk}) + "\n", encoding="utf-8")
    (row,) = source_rows(Source(path="t.jsonl", messages="talk", continue_final_message=True), root=tmp_path)
    assert isinstance(row, Row)
    assert row.given == {"continue_final_message": True}
    (refused,) = source_rows(Source(path="t.jsonl", messages="talk"), root=tmp_path)
    assert isinstance(refused, FailedRow)
    assert "The last message is the assistant's" in refused.error


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"prompt": "{{ missing }}"}, "'missing' is undefined. Columns: question, hint, answer, n"),
        ({"sources": ["nowhere"]}, "the source 'nowhere' occurs 0 times in the prompt"),
        ({"id": "{{ '/' }}"}, "the id '/' is empty"),
        ({"prompt": "{{ 1 // (n - n) }}"}, "division"),
        ({"prompt": "{{ question.__class__.__mro__ }}"}, "is unsafe"),
    ],
)
def test_a_row_that_cannot_be_made(settings: dict[str, object], says: str, folder: Path) -> None:
    found = rows(folder, path="q.jsonl", **settings)
    assert len(found) == 6
    first = found[0]
    assert isinstance(first, FailedRow)
    assert says in first.error


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"path": "none.jsonl"}, "none.jsonl: no such file. Relative paths start at the recipe's folder"),
        ({"path": "q.xlsx"}, "unknown kind of file. Known: .jsonl, .json, .csv, .parquet"),
        ({"saved": "none"}, "no such folder"),
        ({"saved": "splits", "split": "dev"}, "has no split 'dev'. It has: train, test"),
        ({"path": "q.jsonl", "prompt": "{{ question"}, "the prompt template is not Jinja"),
    ],
)
def test_data_that_cannot_be_read(settings: dict[str, object], says: str, folder: Path) -> None:
    with pytest.raises(RecipeError, match=says):
        rows(folder, **settings)


def test_a_broken_file_is_one_paragraph(tmp_path: Path) -> None:
    (tmp_path / "b.parquet").write_bytes(b"not parquet")
    with pytest.raises(RecipeError, match="b: cannot be read") as caught:
        rows(tmp_path, path="b.parquet")
    assert "\n" not in str(caught.value)


def test_ids_must_differ(folder: Path) -> None:
    source = {"path": "q.jsonl", "prompt": "x {{ n }}", "id": "same"}
    recipe = Recipe(version=2, name="r", data=[source])
    with pytest.raises(RecipeError, match="two rows have the id 'same'"):
        list(recipe_rows(recipe, root=folder))
    assert count_rows(recipe) is None
    assert count_rows(Recipe(version=2, name="r", data=[{"suite": "needle"}, {"suite": "induction", "limit": 3}])) == 13
