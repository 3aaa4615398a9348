"""The plain sentence on the winner of an evaluation, with its interval."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from llmxai.runs.results import main_winner, winner_sentence
from llmxai.runs.tables import Tables, tabulate


def tables(values: Mapping[str, Mapping[str, Sequence[float | None]]], *, resamples: int = 500) -> Tables:
    """From one value per figure, method and question."""
    lines = [
        {"id": str(i), "source": "s", "method": method, "figure": figure, "value": value}
        | {"seconds": 1.0, "nodes": None, "converged": None, "error": ""}
        for figure, methods in values.items()
        for method, row in methods.items()
        for i, value in enumerate(row)
        if value is not None
    ]
    return tabulate(lines, resamples=resamples, seed=0)


FAR = {"a": [0.9, 0.8, 0.85, 0.95, 0.9] * 2, "b": [0.4, 0.3, 0.2, 0.5, 0.3] * 2, "c": [0.1, 0.2, 0.1, 0.3, 0.2] * 2}
NEAR = {"a": [0.9, 0.1, 0.8, 0.2, 0.5] * 2, "b": [0.2, 0.8, 0.1, 0.9, 0.4] * 2}


def test_the_winner_leads_the_next_by_a_paired_difference() -> None:
    (winner,) = tables({"lds": FAR}).winners
    assert (winner.figure, winner.method, winner.other) == ("lds", "a", "b")
    assert winner.lead.mean == pytest.approx(np.mean(np.subtract(FAR["a"], FAR["b"])))
    assert winner.certain
    said = winner_sentence(winner)
    low, high = winner.lead.low, winner.lead.high
    assert f"a, 0.88 ({winner.value.low:.2f} to {winner.value.high:.2f}) over 10 questions." in said
    assert said.endswith(f"It leads b, the next, by 0.54 ({low:.2f} to {high:.2f}): more than chance.")


def test_a_lead_that_may_be_chance_is_called_so() -> None:
    (winner,) = tables({"lds": NEAR}).winners
    assert not winner.certain
    assert winner_sentence(winner).endswith("which may be chance.")
    assert re.search(r"by 0\.02 \(−\d\.\d\d to \d\.\d\d\)", winner_sentence(winner))


def test_few_questions_conclude_nothing() -> None:
    (winner,) = tables({"lds": {name: row[:4] for name, row in FAR.items()}}).winners
    assert winner.certain, "by its interval"
    assert winner_sentence(winner).endswith("4 questions are too few to conclude from.")


def test_less_is_better_for_some_figures_and_a_lead_is_still_above_zero() -> None:
    (winner,) = tables({"sufficiency": FAR}).winners
    assert (winner.method, winner.other) == ("c", "b")
    assert winner.lead.mean == pytest.approx(np.mean(FAR["b"]) - np.mean(FAR["c"]))


def test_few_questions_have_no_interval() -> None:
    (winner,) = tables({"mrr": {"a": [1.0, 0.5], "b": [0.2, 0.1]}}).winners
    assert not winner.certain
    assert winner_sentence(winner).endswith("Too few questions to compare it with b, the next (+0.6).")


def test_controls_do_not_win_and_one_method_has_no_rival() -> None:
    values = {"lds": {"a": [0.1, 0.2, 0.3], "random": [0.9, 0.9, 0.9], "leave_one_out": [0.95, 0.9, 0.9]}}
    assert tables(values).winners == ()
    assert main_winner(tables(values)) is None
    both = tables({"lds": {**values["lds"], "b": [0.0, 0.1, 0.0]}})
    assert [winner.method for winner in both.winners] == ["a"]


def test_questions_that_only_one_of_them_has_do_not_count_for_the_lead() -> None:
    (winner,) = tables({"lds": {"a": [0.9, 0.8, 0.7, 1.0], "b": [0.1, None, 0.2, 0.3]}}).winners
    assert winner.lead.n == 3
    assert winner.lead.mean == pytest.approx(np.mean([0.8, 0.5, 0.7]))


def test_the_main_figure_is_the_prediction_of_removals() -> None:
    found = tables({"mrr": FAR, "lds": {"a": FAR["b"], "b": FAR["a"]}})
    winner = main_winner(found)
    assert winner is not None
    assert (winner.figure, winner.method) == ("lds", "b")
    assert len(found.winners) == 2
