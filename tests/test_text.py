"""Where sentences end: the same for the units that are removed and for the page."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import answered

from llmxai import explain
from llmxai.methods.perturbation.removal import prompt_units
from llmxai.models import LoadedModel
from llmxai.names import Role
from llmxai.report import build_view
from llmxai.settings import IntegratedGradients, Settings
from llmxai.store import to_json, to_maps
from llmxai.text import group_words, sentences

CASES = {
    "two": ["One two.", " Three."],
    "no end": ["One two three"],
    "number": ["Pi is 3.14 or so.", " Yes."],
    "version": ["Use 1.2.3, please.", " Now."],
    "number at the end": ["It is 3.", " 14 are left."],
    "address": ["See www.example.org/a.b now.", " Go."],
    "address with a question mark": ["See https://example.org/?q=1&p=2 now.", " Go."],
    "file": ["Open notes.txt!", " Now?", " Yes."],
    "dots": ["Wait...", " what?"],
    "one dot that is three": ["Wait…", " what?"],
    "dots before a letter": ["Wait...what?", " Yes."],
    "several marks": ["Really?!", " Yes!!!", " No."],
    "quotes": ['He said "go."', " Then he left."],
    "brackets": ["(It was late.)", " He left."],
    "opening quotes": ["He left.", ' "Why?"', " she asked."],
    "Chinese": ["我来了。", "你好！", "是吗？", "是"],
    "Chinese quotes": ["他说：「来吧。」", "我来了。"],
    "Chinese with other marks": ["我来了!", "你好?", "用Node.js吧"],
    "Hindi": ["वह आया।", " वह गया।"],
    "Arabic": ["كيف حالك؟", " بخير"],
    "line break": ["One\n", "two three\n", "four"],
    "mark and line break": ["One.\n", "Two."],
    "several line breaks": ["One.\n\n\n", "Two\n\n", "three"],
    "indented": ["def f():\n", "    return 1\n", "f()"],
    "two spaces": ["One.", "  Two."],
    "an abbreviation, known to be taken for an end": ["Dr.", " Who is here."],
    "list": ["1.", " Bread\n", "2.", " Milk"],
}
"""Texts as their sentences."""


def split(tokens: list[str], roles: list[Role] | None = None) -> list[str]:
    roles = roles or [Role.USER] * len(tokens)
    found = sentences(tokens, roles, group_words(tokens, roles))
    return ["".join(tokens[start:end]) for start, end in found]


@pytest.mark.parametrize("wanted", CASES.values(), ids=CASES)
def test_where_sentences_end(wanted: list[str]) -> None:
    assert split(list("".join(wanted))) == wanted


def test_marks_that_share_a_token_with_what_follows_them() -> None:
    assert split(["One", ".\n\n", "Two", "...", " Three", ".)", " Four"]) == ["One.\n\n", "Two...", " Three.)", " Four"]
    assert split(["One", ". ", "Two", "! ", "Three"]) == ["One. ", "Two! ", "Three"]


def test_a_change_of_role_ends_a_sentence() -> None:
    roles = [Role.SYSTEM, Role.SYSTEM, Role.USER, Role.USER, Role.TEMPLATE, Role.GENERATED]
    assert split(["Be", " brief", "Which", " city", "<end>", "Rome"], roles) == [
        "Be brief",
        "Which city",
        "<end>",
        "Rome",
    ]
    assert split(["It", ".", '"', "5"], [Role.USER] * 2 + [Role.CONTEXT] * 2) == ["It.", '"5']


def test_no_gap_is_joined() -> None:
    """Template tokens between two words of the same role belong to no unit."""
    tokens, roles = ["One", " two", "<x>", " three", "."], [Role.USER] * 5
    assert sentences(tokens, roles, [(0, 1), (1, 2), (3, 4), (4, 5)]) == [(0, 2), (3, 5)]
    assert sentences(["One", ".", "<x>", "\n"], roles, [(0, 1), (1, 2), (3, 4)]) == [(0, 2), (3, 4)]
    assert sentences([], [], []) == []


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(["a", " b", ".", "!", "?", '"', "\n", " ", "", "。", "日", "1", "...", ")\n"]), max_size=20
    ),
    st.integers(0, 20),
)
def test_sentences_are_runs_of_words(tokens: list[str], cut: int) -> None:
    """They cover what the words cover, in order; none crosses a role, and none but a role's first is line breaks."""
    roles = [Role.USER if i < cut else Role.GENERATED for i in range(len(tokens))]
    words = group_words(tokens, roles)
    found = sentences(tokens, roles, words)
    assert [edge for sentence in found for edge in sentence][:1] == [0][: len(tokens)]
    assert all(before[1] == after[0] for before, after in pairwise(found))
    assert {end for _, end in found} <= {end for _, end in words}
    assert all(len(set(roles[start:end])) == 1 for start, end in found)
    for before, (start, end) in pairwise(found):
        text = "".join(tokens[start:end])
        assert roles[before[0]] != roles[start] or text.strip("\n")


def test_removal_and_the_page_and_the_object_have_the_same(
    tiny_llama: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = "Pi is 3.14. Really?! See a.org/?x=1 now.\nThe capital of France is"
    generation = answered(tiny_llama, prompt, " Paris. And Rome")
    wanted = ["Pi is 3.14.", " Really?!", " See a.org/?x=1 now.\n", "The capital of France is"]
    units, kind = prompt_units(generation, units="sentence")
    assert kind == "sentence"
    assert ["".join(generation.texts[start:end]) for start, end in units] == wanted
    few = Settings(gradients=IntegratedGradients(max_nodes=4), removal=None)
    explanation = explain(tiny_llama, generation, settings=few)
    grouped = explanation.groups("sentence")
    assert ["".join(generation.texts[start:end]) for start, end in grouped] == [*wanted, " Paris.", " And Rome"]
    assert tuple(grouped[: len(units)]) == units
    monkeypatch.setattr("llmxai.report.view.LONG", 0)  # the page has sentences where the text is long
    view = build_view(to_json(explanation), to_maps(explanation))
    assert [unit.start for unit in view.levels["sentences"].units] == [start for start, _ in grouped]
