"""The prose stays plain: words that made it read as if translated do not come back."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
INSTEAD = {
    r"told|tells? apart": "say, report, known, distinguish",
    r"beside": "compared with, next to",
    r"nobody|somebody|whoever": "no one by name, or say who: the caller, the reader",
    r"shall": "must, should, or the present tense",
    r"foretell\w*": "predict",
    r"mend(?:s|ed|ing)?": "fix",
    r"dear(?:er|est)": "expensive, costs the most",
    r"(?:bear|bears|bore|bearing) out": "support",
    r"lacks": "misses, has no",
    r"(?:take|takes|taken|took) apart": "remove parts of, split",
    r"what (?:it|this|that) is": "meaning, contents, or name the thing",
    r"(?<!soon )as it is": "unchanged",
    r"stands(?! for\b)": "is, comes, appears",
    r"anew": "again, or rebuild, regenerate",
    r"for want of": "because there is no",
}
DROPPED = [(re.compile(rf"\b(?:{words})\b", re.IGNORECASE), instead) for words, instead in INSTEAD.items()]
ALLOWED = {
    ("llmxai/evaluation/suites.py", "Nobody had closed the window in the hall."),  # the text of a suite, not prose
    ("llmxai/evaluation/suites.py", "Somebody had left a bicycle by the gate."),
    # the README of a bundle, whose bytes are part of the format
    ("llmxai/evidence/verifier/bundle.py", "key from its owner, never from whoever handed you this bundle."),
}
"""File and line, without white space at its ends, quotes and commas."""

PAGES = [
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "Makefile", "pyproject.toml")
    ),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "reports" / "README.md",
    *sorted((ROOT / "recipes").glob("*.yaml")),
    *sorted(path for kind in ("*.j2", "*.js", "*.html") for path in (ROOT / "llmxai").rglob(kind)),
]
MODULES = sorted((ROOT / "llmxai").rglob("*.py"))


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def faults(path: Path, lines: Iterator[tuple[int, str]]) -> list[str]:
    return [
        f"{named(path)}:{number}: {found.group(0)!r} (instead: {instead}): {line.strip()}"
        for number, line in lines
        for pattern, instead in DROPPED
        for found in pattern.finditer(line)
        if (named(path), line.strip().strip("\",'")) not in ALLOWED
    ]


def strings_and_comments(source: str) -> Iterator[tuple[int, str]]:
    """(line number, text) of everything in a module that people read; what an f-string computes is left out."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if tokenize.tok_name[token.type] in ("STRING", "COMMENT", "FSTRING_MIDDLE"):
            text = token.string
            if re.match(r"[rR]?[fF]", text):
                text = re.sub(r"\{[^{}]*\}", "", text)
            yield from ((token.start[0] + n, line) for n, line in enumerate(text.splitlines()))


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_pages_and_documents(path: Path) -> None:
    found = faults(path, enumerate(path.read_text(encoding="utf-8").splitlines(), start=1))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_docstrings_comments_and_messages(path: Path) -> None:
    found = faults(path, strings_and_comments(path.read_text(encoding="utf-8")))
    assert not found, "\n".join(found)


def test_the_allowed_lines_exist() -> None:
    for name, line in ALLOWED:
        assert line in (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("every token is told which method is right", ["told"]),
        ("which Foretells it, beside the null", ["Foretells", "beside"]),
        ("as soon as it is computed, a marked token", []),
        ("`id` stands for the row, which stands in the table", ["stands"]),
        ("recommended, amended, untold, besides", []),
    ],
)
def test_what_counts(line: str, words: list[str]) -> None:
    assert sorted(found.group(0) for pattern, _ in DROPPED for found in pattern.finditer(line)) == words
