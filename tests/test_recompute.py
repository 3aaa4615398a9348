"""Two explanations compared: maps as numbers, and statuses only by the same rule."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from tiny import make_loaded

from llmxai import Explanation, IntegratedGradients, Settings, explain
from llmxai.recompute import compare, settings_of
from llmxai.store import to_json, to_maps


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    settings = Settings(gradients=IntegratedGradients(max_nodes=8))
    return explain(make_loaded("llama"), "The capital of France", max_new_tokens=2, settings=settings)


def test_maps_of_bytes_do_not_wrap_around(explanation: Explanation) -> None:
    document, maps = to_json(explanation), to_maps(explanation)
    assert compare(document, maps, document, maps).outcome == "within"
    ones = {**maps, "features": np.ones_like(maps["features"])}
    zeros = {**maps, "features": np.zeros_like(maps["features"])}
    for before, after in ((ones, zeros), (zeros, ones)):  # 0 - 1 is 255 among bytes
        found = compare(document, before, document, after)
        assert found.maps["features"].largest == 1.0
        assert found.outcome == "outside"


def test_statuses_are_compared_where_the_rule_is_the_same(explanation: Explanation) -> None:
    document, maps = to_json(explanation), to_maps(explanation)
    other = copy.deepcopy(document)
    other["targets"][0]["status"] = "agree"
    found = compare(other, maps, document, maps)
    assert (found.outcome, found.changed_statuses) == ("outside", 1)
    other["computed"]["crosscheck"]["version"] = 3
    found = compare(other, maps, document, maps)
    assert (found.outcome, found.changed_statuses) == ("within", 0)
    now = document["computed"]["crosscheck"]["version"]
    assert found.differences == (f"status rule: 3 then, {now} now, so statuses are not compared",)
    assert found.tolerance == compare(document, maps, document, maps).tolerance


def test_what_was_computed_before_precision_was_a_setting_is_computed_in_the_stored_one(
    explanation: Explanation,
) -> None:
    document = copy.deepcopy(to_json(explanation))
    assert settings_of(document).compute.precision == "float32"
    del document["settings"]["compute"]["precision"]
    assert settings_of(document).compute.precision == "stored"
    document["settings"] = None
    assert settings_of(document).compute.precision == "stored"
