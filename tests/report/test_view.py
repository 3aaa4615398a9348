"""The report as data."""

from __future__ import annotations

import numpy as np
import pytest

from llmxai.report import build_view
from llmxai.report.visible import label, visible
from tests.report.sample import sample


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text", "plain text"),
        ("a\u202eb", "a⟦RLO⟧b"),
        ("\0", "⟦NUL⟧"),
        ("\x07", "⟦U+0007⟧"),
        ("\u200b", "⟦ZWSP⟧"),
        ("line\nbreak\ttab", "line\nbreak\ttab"),
        ("👩\u200d👧", "👩\u200d👧"),
    ],
)
def test_invisible_characters_are_named(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(("text", "name"), [(" Paris", "Paris"), ("  ", "␣␣"), ("\n", "⏎"), ("", ""), (" a b", "a b")])
def test_label(text: str, name: str) -> None:
    assert label(text) == name


def test_words_add_gradients_and_average_rollout() -> None:
    document, maps = sample(["<s>", "un", "believ", " you"], [" am", "azing", " yes"])
    data = build_view(document, maps).data["levels"]["words"]
    assert [unit[0] for unit in data["units"]] == ["<s>", "unbeliev", " you", " amazing", " yes"]
    word = data["targets"][0]
    assert (word["unit"], word["joined"]) == (3, 2)
    both = dict(map(tuple, word["gradients"]))
    g, r = maps["integrated_gradients"], maps["rollout"]
    assert both[1] == round(float(g[:2, 1:3].sum(dtype=float)) * 10_000)
    assert both[3] == round(float(g[:2, 4:6].sum(dtype=float)) * 10_000)
    assert dict(map(tuple, word["rollout"]))[2] == round(float(r[:2, 3].mean(dtype=float)) * 1_000_000)
    assert word["structure"] == pytest.approx(float(r[:2, 0].mean()), abs=1e-6)


def test_a_word_carries_the_most_careful_status_and_its_reason() -> None:
    document, maps = sample(["<s>", " a", " b"], [" c", "d", "e"], statuses=["agree", "unconverged", "diluted"])
    view = build_view(document, maps)
    word = view.data["levels"]["words"]["targets"][0]
    assert word["status"] == "unconverged"
    assert word["reason"].startswith("It is unconverged")
    assert [count.count for count in view.counts] == [1, 1, 0, 1]
    assert "1 of 3 gradient attributions miss" in view.sentences[0]


def test_half_characters_are_one_unit_among_tokens() -> None:
    document, maps = sample(["<s>", "", "日", " x"], [" y", "", "本"])
    units = build_view(document, maps).data["levels"]["tokens"]["units"]
    assert [unit[0] for unit in units] == ["<s>", "日", " x", " y", "本"]


def test_main_sources_leave_out_unconverged_targets_and_the_answer() -> None:
    document, maps = sample(["<s>", " first", " second"], [" x", " y"], statuses=["agree", "unconverged"])
    maps["integrated_gradients"][:] = 0
    maps["integrated_gradients"][0, 1:3] = [3.0, -1.0]
    maps["integrated_gradients"][1, 2] = 100.0
    assert build_view(document, maps).main_sources == (("first", "75%"), ("second", "25%"))


def test_the_end_mark_is_no_part_of_the_answer() -> None:
    document, maps = sample(["<s>", " a"], [" Paris", "<end>"])
    assert build_view(document, maps).answer == "Paris<end>"
    document["generation"]["stop"] = "eos"
    view = build_view(document, maps)
    assert view.answer == "Paris"
    assert view.title == "Why did the model say “Paris”?"


def test_the_page_gets_top_sources_only() -> None:
    document, maps = sample(["<s>", *[f" w{i}" for i in range(100)]], [" x"])
    target = build_view(document, maps).data["levels"]["words"]["targets"][0]
    assert len(target["gradients"]) == 20
    best = np.argsort(-np.abs(maps["integrated_gradients"][0]))[:20]
    assert [unit for unit, _ in target["gradients"]] == best.tolist()
