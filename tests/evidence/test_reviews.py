"""A reviewer's marks: from the page's review.json into the log, and from there onto the index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ended import Run

from llmxai.errors import EvidenceError
from llmxai.evidence import Mark, Review, import_review, read_review, verify
from llmxai.evidence.log import read_log
from llmxai.evidence.provenance import reviews_of
from llmxai.report.rebuild import rebuild

WORD = {"tokens": [3, 4], "text": " Paris", "mark": "question", "comment": "why?"}
WHOLE = {"tokens": None, "text": "", "mark": "agree", "comment": ""}
REPOSITORY = Path(__file__).parents[2]


def written(path: Path, **changes: Any) -> Path:
    values = {
        "schema": "llmxai.review/1",
        "record": "r" * 20,
        "explanation_sha256": "0" * 64,
        "page": "Where the answer came from",
        "by": "r7",
        "saved": "2026-11-27T10:00:00.000Z",
        "marks": [WHOLE, WORD],
    }
    path.write_text(json.dumps(values | changes), encoding="utf-8")
    return path


def test_a_file_is_read_as_it_was_saved(tmp_path: Path) -> None:
    review = read_review(written(tmp_path / "review.json"))
    assert review.marks == (Mark(None, "", "agree", ""), Mark((3, 4), " Paris", "question", "why?"))
    assert review.decision == "agree; 1 word questioned"
    more = [WORD, {**WORD, "tokens": [4, 5]}, {**WORD, "mark": "comment"}]
    assert read_review(written(tmp_path / "b.json", marks=more)).decision == "1 word commented; 2 words questioned"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": "llmxai.review/2"}, "is no review"),
        ({"record": None}, "names no record"),
        ({"explanation_sha256": ""}, "names no record"),
        ({"marks": []}, "no marks"),
        ({"by": " "}, "no reviewer"),
        ({"marks": [{**WORD, "mark": "shout"}]}, "marks.0.mark is 'shout'"),
        ({"marks": [{**WORD, "tokens": [1]}]}, "marks.0.tokens"),
        ({"extra": 1}, "extra is 1"),
    ],
)
def test_another_file_is_refused_with_a_reason(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(EvidenceError, match=said):
        read_review(written(tmp_path / "review.json", **changes))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\udcff"])
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "review.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(EvidenceError, match=r"review\.json: (no review can be read|is no review)"):
        read_review(tmp_path / "review.json")
    with pytest.raises(EvidenceError, match="no review can be read"):
        read_review(tmp_path / "none.json")


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    """A copy of a run with its log."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(REPOSITORY / "reports" / "gallery", run)
    return run


def explained(run: Path, name: str) -> tuple[str, str]:
    """Id of the record of an explanation, and the SHA-256 of its explanation.json."""
    for entry, _ in read_log(run):
        for file in entry.body["artefacts"]:
            if file["path"] == f"records/{name}/explanation.json":
                return entry.id, file["sha256"]
    raise AssertionError(name)


def test_marks_enter_the_log_and_the_index_shows_them(run: Run, gallery: Path, tmp_path: Path) -> None:
    id, digest = explained(gallery, "capital")
    file = written(tmp_path / "review.json", record=id, explanation_sha256=digest)
    index = (gallery / "index.html").read_text(encoding="utf-8")
    assert "1 word questioned" not in index
    done = run("review", "import", str(file), "--run", str(gallery))
    assert done.code == 0, done.err
    assert done.out.startswith("reviewed: agree; 1 word questioned: record ")
    last, _ = read_log(gallery)[-1]
    assert (last.body["kind"], last.body["link"]["records"], last.body["link"]["by"]) == ("review", [id], "r7")
    assert verify(gallery).exit in (0, 2)
    assert verify(gallery).exit == verify(REPOSITORY / "reports" / "gallery").exit
    assert reviews_of(gallery) == {"capital": ["agree; 1 word questioned (r7)"]}
    index = (gallery / "index.html").read_text(encoding="utf-8")
    assert "agree; 1 word questioned (r7)" in index
    assert "why?" not in index, "the marks themselves are a text that can be redacted"
    assert "why?" in (gallery / "evidence" / "content.jsonl").read_text(encoding="utf-8")
    rebuild(gallery, reviews=reviews_of)
    assert "agree; 1 word questioned (r7)" in (gallery / "index.html").read_text(encoding="utf-8")
    again = run("review", "import", str(file), "--run", str(gallery))
    assert (again.code, "was entered before" in again.err) == (2, True)
    assert len(read_log(gallery)) == last.body["chain"]["seq"] + 1 or read_log(gallery)[-1][0].id == last.id


def test_marks_on_another_explanation_are_refused(gallery: Path) -> None:
    id, _ = explained(gallery, "capital")
    _, other = explained(gallery, "arabic")
    before = len(read_log(gallery))
    marks = (Mark(None, "", "agree", ""),)
    with pytest.raises(EvidenceError, match="is not the one that was reviewed"):
        import_review(gallery, Review(id, other, "page", "r7", "now", marks))
    with pytest.raises(EvidenceError, match="no record has an id"):
        import_review(gallery, Review("20000101T000000Z-0000", other, "page", "r7", "now", marks))
    assert len(read_log(gallery)) == before
