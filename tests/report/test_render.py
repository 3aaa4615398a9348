"""The page as HTML text."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest

from llmxai.report import build_view, render_report
from tests.report.sample import HOSTILE, hostile, sample


@pytest.fixture(scope="module")
def page() -> str:
    return render_report(build_view(*hostile()))


def inner(page: str, opening: str) -> list[str]:
    tag = opening.strip("<").split()[0].rstrip(">")
    return re.findall(re.escape(opening) + f"(.*?)</{tag}>", page, flags=re.DOTALL)


def test_hostile_text_stays_text(page: str) -> None:
    assert page.count("<script") == 2
    assert "<img" not in page
    assert 'onmouseover="' not in page
    assert "{{ 7*7 }}" in page
    for control in ("\0", "\u202e", "\u202c", "\u2028", "\ufeff"):
        assert control not in page


def test_the_data_reads_back_equal(page: str) -> None:
    (text,) = inner(page, '<script type="application/json" id="data">')
    assert "<" not in text
    assert json.loads(text) == build_view(*hostile()).data


def test_nothing_inline_and_nothing_from_outside(page: str) -> None:
    markup = re.sub(r"<(style|script)[^>]*>.*?</\1>", "", page, flags=re.DOTALL)
    tags = re.findall(r"<[a-z][^>]*>", markup)
    assert tags
    assert not [tag for tag in tags if re.search(r"\s(style|on\w+|src|srcset)\s*=", re.sub(r'"[^"]*"', '""', tag))]
    assert not re.search(r'href="(?!#)', markup)
    assert "innerHTML" not in page


def test_the_policy_names_style_and_script_by_hash(page: str) -> None:
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    for part in (inner(page, "<style>")[0], inner(page, "<script>")[0]):
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert f"sha256-{digest}" in policy
    assert policy.startswith("default-src &#39;none&#39;")


def test_every_hostile_text_is_shown(page: str) -> None:
    assert "⟦RLO⟧evil⟦PDF⟧" in page
    assert page.count("&lt;/script&gt;") >= 4
    assert len(HOSTILE) == len(build_view(*hostile()).rows)


def test_a_long_one_stays_small() -> None:
    document, maps = sample([f" word{i % 97}" for i in range(4000)], [f" out{i % 53}" for i in range(300)])
    assert len(render_report(build_view(document, maps)).encode()) < 5_000_000
