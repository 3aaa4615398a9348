"""What `llmxai explain` prints for a person, on a terminal and off it."""

from __future__ import annotations

import html
import io
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from llmxai import Explanation, IntegratedGradients, Settings, explain
from llmxai.commands import console, terminal
from llmxai.commands.terminal import first_lines, link, summary, verdict_sentence
from llmxai.models import LoadedModel
from llmxai.names import AttentionStatus, Status
from llmxai.report.verdict import answer_words
from llmxai.store.document import LEAST_FALL, falls_of

FEW = Settings(gradients=IntegratedGradients(max_nodes=8))
PROMPT = "The capital of France is Paris, and the capital of Italy is"


@pytest.fixture(scope="module")
def explanation(tiny_llama: LoadedModel) -> Explanation:
    return explain(tiny_llama, PROMPT, response=" Rome and Paris", settings=FEW)


def as_printed(lines: list[Text], **how: Any) -> str:
    screen = Console(file=io.StringIO(), highlight=False, **how)
    for line in lines:
        screen.print(line, soft_wrap=True)
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def test_falls_are_those_of_the_measured_removals(explanation: Explanation) -> None:
    """Against a plain loop over units and hidden sets; every token of the answer is a target here."""
    effects, generation = explanation.effects, explanation.generation
    assert effects is not None
    assert effects.effect is not None
    for word in explanation.answer_words():
        wanted: dict[str, float] = {}
        for u, (start, end) in enumerate(effects.units):
            drop = sum(float(effects.effect[t, u]) for t in range(*word.tokens))
            text = "".join(generation.texts[start:end]).strip()
            wanted[text] = max(wanted.get(text, -math.inf), drop)
        assert effects.f_hidden is not None
        for h, ranges in enumerate(effects.hidden):
            drop = sum(float(effects.f_full[t] - effects.f_hidden[t, h]) for t in range(*word.tokens))
            text = "".join(generation.texts[slice(*ranges[0])]).strip()
            if not math.isnan(drop):
                wanted[text] = max(wanted.get(text, -math.inf), drop)
        found = falls_of(generation, effects, range(*word.tokens))
        assert {fall.text.strip(): fall.nats for fall in found} == pytest.approx(
            {text: drop for text, drop in wanted.items() if drop >= LEAST_FALL}, abs=1e-9
        )
        assert [fall.nats for fall in found] == sorted((fall.nats for fall in found), reverse=True)


def test_what_is_known_first_agrees_with_the_end(explanation: Explanation) -> None:
    """The early lines have the same words and sources as the summary, which adds the statuses."""
    known = explanation.generation, explanation.targets, explanation.replay
    early = first_lines(*known, explanation.effects)
    assert first_lines(*known, None) == early[:1]
    late = summary(explanation)
    words = explanation.answer_words()
    for first, last, word in zip(early[1:], late[1:], words, strict=False):
        before, after = first.plain.split("without", 1), last.plain.split("without", 1)
        assert before[1:] == after[1:]
        assert after[0].split() == [before[0].strip(), word.status]
    assert late[-1].plain == verdict_sentence(explanation)


def test_it_is_reported_as_soon_as_it_is_known(tiny_llama: LoadedModel) -> None:
    order: list[str] = []
    found = explain(
        tiny_llama,
        PROMPT,
        response=" Rome",
        settings=FEW,
        progress=lambda stage, _done, _n: order.append(stage),
        found=lambda _generation, _targets, _replay, effects: order.append("answer" if effects is None else "effects"),
    )
    stages = list(dict.fromkeys(stage for stage in order if not stage.startswith("planned")))
    assert stages[:5] == ["reading the answer", "replaying", "answer", "removing parts of the text", "effects"]
    assert stages[5] == "integrating gradients"
    assert found.effects is not None
    assert found.effects.effect is not None  # estimated around the deletion path, once that is known


def with_statuses(explanation: Explanation, *statuses: Status, attention: AttentionStatus) -> Explanation:
    checks = [
        replace(check, status=statuses[min(t, len(statuses) - 1)], attention=attention)
        for t, check in enumerate(explanation.checks)
    ]
    return replace(explanation, checks=tuple(checks))


def on_the_page(explanation: Explanation) -> str:
    """The text below "Can I trust this?"."""
    found = re.search(r'<section[^>]* id="trust">.*?<p>(.*?)</p>', explanation.to_html(), flags=re.DOTALL)
    assert found is not None
    quoted = re.sub(r'<bdi class="quoted">(.*?)</bdi>', r"“\1”", found[1])
    return html.unescape(re.sub(r"<[^>]+>", "", quoted))


def test_the_verdict_is_the_sentence_on_the_page(explanation: Explanation) -> None:
    words = explanation.answer_words()
    assert [word.text.strip() for word in words] == ["Rome", "and", "Paris"]
    ends = [word.tokens[1] for word in words]
    mixed = [Status.CONFIRMED] * ends[0] + [Status.UNDECIDED] * (ends[1] - ends[0]) + [Status.UNCONVERGED] * 9
    told = {
        name: verdict_sentence(one)
        for name, one in {
            "mixed": with_statuses(explanation, *mixed, attention=AttentionStatus.DILUTED),
            "same": with_statuses(explanation, Status.CONTRADICTED, attention=AttentionStatus.READABLE),
            "unchecked": with_statuses(unremoved(explanation), Status.UNDECIDED, attention=AttentionStatus.REFUSED),
        }.items()
        if verdict_sentence(one) == on_the_page(one)
    }
    assert told["mixed"].startswith("In part. Computed accurately: 2 of the 3 words (not “Paris”). Confirmed by taking")
    assert told["mixed"].endswith("Attention cannot be read on this model.")
    assert "Contradicted by taking words away: 3." in told["same"]
    assert told["same"].endswith("Attention can be read for all 3 words.")
    assert told["unchecked"].startswith("Not checked. Computed accurately: all 3 words. Nothing was taken away")


def unremoved(explanation: Explanation) -> Explanation:
    return replace(explanation, effects=None, settings=replace(explanation.settings, removal=None))


@pytest.mark.parametrize("targets", ["token", "word", "answer", "Rome", ["Rome", "Paris"], "0:2"])
def test_the_sentence_counts_the_words_that_are_listed(tiny_llama: LoadedModel, targets: Any) -> None:
    found = explain(tiny_llama, PROMPT, response=" Rome, and Paris.", settings=FEW, targets=targets)
    assert len(answer_words(found.to_dict())) == len(found.answer_words()) == len(summary(found)) - 2


def test_without_removals_the_contributions_are_the_sources(tiny_llama: LoadedModel) -> None:
    found = explain(tiny_llama, PROMPT, response=" Rome", settings=replace(FEW, removal=None))
    line = summary(found)[1].plain
    first = next(source for source in found.answer_words()[0].sources() if source.role != "generated")
    assert f"{terminal.quoted(first.text.strip())} {first.value:+.2f} nats" in line


def test_colours_only_where_they_are_wanted(explanation: Explanation, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = summary(explanation)
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = as_printed(lines, force_terminal=True, color_system="standard", legacy_windows=False)
    assert re.search(r"\x1b\[[\d;]*3[1-6]m", coloured)
    plain = as_printed(lines)
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain
    monkeypatch.setenv("NO_COLOR", "1")
    without = as_printed(lines, force_terminal=True, color_system="standard", legacy_windows=False)
    assert not re.search(r"\x1b\[[\d;]*[349][0-7]m", without)
    assert re.sub(r"\x1b\[[\d;]*m", "", without) == plain


@pytest.mark.parametrize("no_color", [False, True])
def test_the_path_is_a_link_on_a_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_color: bool) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, color_system="standard", no_color=no_color, width=400)
    monkeypatch.setattr(terminal, "out", lambda: screen)
    page = tmp_path / "a folder" / "report.html"
    terminal.print_lines([link(page)])
    assert isinstance(screen.file, io.StringIO)
    printed = screen.file.getvalue()
    assert re.search(rf"\x1b\]8;[^;]*;{re.escape(page.as_uri())}\x1b\\", printed)
    assert str(page) in printed
    monkeypatch.setattr(terminal, "out", lambda: Console(file=io.StringIO()))
    assert link(page) == Text(str(page))
    assert not link(page).spans


def test_an_answer_cannot_command_the_terminal(explanation: Explanation) -> None:
    generation = explanation.generation
    texts = (*generation.texts[:-1], "\x1b]0;owned\x07\x1b[2J")
    hostile = replace(explanation, generation=replace(generation, texts=texts))
    printed = as_printed(summary(hostile))
    assert "\x1b" not in printed
    assert "\\x1b]0;owned" in printed


def test_long_answers_are_cut(explanation: Explanation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "MOST_WORDS", 2)
    lines = [line.plain for line in summary(explanation)]
    assert lines[3] == "  and 1 more words: see the report"
    assert len(lines) == 5


def test_on_a_terminal_the_sources_are_above_the_bar_and_disappear(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=100, highlight=False)
    monkeypatch.setattr(console, "log", screen)
    with console.progress() as report:
        report("removing", 1, 4)
        report("integrating", 3, 9)
        report.show([Text("answer: Paris")])
        assert isinstance(screen.file, io.StringIO)
        drawn = screen.file.getvalue()
        assert "removing" in drawn
        before, _, after = drawn.rpartition("answer: Paris")
        assert before
        assert "integrating" in after
        assert "3/9" in after
    assert screen.file.getvalue().endswith("\x1b[1A\x1b[2K")  # the lines are erased


def test_counts_and_time_left_off_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain lines, at most one every few seconds; the pace is that since the first finished step."""
    screen = Console(file=io.StringIO(), width=100, highlight=False)
    monkeypatch.setattr(console, "log", screen)
    clock = iter([0.0, 60.0, 61.0, 70.0, 80.0, 81.0, 90.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress() as report:
        for done in (0, 1, 2, 11, 21, 22, 31):
            report("integrating", done, 31)
    assert isinstance(screen.file, io.StringIO)
    assert screen.file.getvalue().splitlines() == [
        "llmxai: integrating",
        "llmxai: integrating, 2 of 31, 0:00:29 left",
        "llmxai: integrating, 11 of 31, 0:00:20 left",
        "llmxai: integrating, 21 of 31, 0:00:10 left",
    ]
