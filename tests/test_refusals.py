"""Where attention rollout is not defined for the model, the rest is delivered and the refusal is said everywhere."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from llmxai.crosscheck.status import TargetError, status_alone
from tiny import answered, make_loaded

from llmxai import Explanation, Status, explain, save
from llmxai.errors import UnsupportedModelError
from llmxai.evidence import begin
from llmxai.evidence.log import read_log
from llmxai.evidence.recorder import explanation_record
from llmxai.methods import attention_rollout, layer_integrated_gradients
from llmxai.models import LoadedModel
from llmxai.recompute import recompute
from llmxai.report.export import export
from llmxai.report.rows import summarize
from llmxai.settings import IntegratedGradients, Settings
from llmxai.store import read_folder
from llmxai.types import RefereeVerdict, Score

PROMPT, RESPONSE = "The capital of France is", " Paris, Rome"


@pytest.fixture(scope="module")
def hybrid() -> LoadedModel:
    return make_loaded("lfm2", initializer_range=0.1)


@pytest.fixture(scope="module")
def explained(hybrid: LoadedModel) -> Explanation:
    return explain(hybrid, PROMPT, response=RESPONSE)


def test_gradients_are_delivered_and_rollout_is_refused(hybrid: LoadedModel, explained: Explanation) -> None:
    with pytest.raises(UnsupportedModelError) as error:
        attention_rollout(hybrid, explained.generation)
    alone = layer_integrated_gradients(hybrid, answered(hybrid, PROMPT, RESPONSE))
    assert torch.allclose(explained.gradients.values, alone.values, atol=1e-6)
    for refused in (explained.rollout, explained.variant):
        assert refused.refused == str(error.value)
        assert "2 conv" in str(error.value)
        assert not refused.values.any()
        assert not refused.features.any()
        assert refused.lost_mass is None
    for check in explained.checks:
        assert check.status == Status.UNCHECKED
        assert "rollout is refused" in check.reason
        assert "LDS of" in check.reason
        assert check.verdict is not None
        assert set(check.verdict.scores) == {"layer_integrated_gradients", "leave_one_out"}
        assert (check.verdict.better, check.verdict.interval) == (None, None)
        assert (check.dilution, check.agreement.spearman, check.agreement.top_k_overlap) == (None, None, None)


def test_an_unconverged_token_stays_unconverged(hybrid: LoadedModel) -> None:
    few = Settings(gradients=IntegratedGradients(max_nodes=4), removal=None)
    result = explain(hybrid, PROMPT, response=RESPONSE, settings=few)
    assert result.gradients.certificate is not None
    statuses = [check.status for check in result.checks]
    want = [
        Status.UNCHECKED if converged else Status.UNCONVERGED for converged in result.gradients.certificate.converged
    ]
    assert statuses == want


def test_the_sentence_without_a_referee_and_without_ranks() -> None:
    fine = TargetError(converged=True, local_error=0.01, tolerance=0.02)
    assert "Nothing was removed to test them" in status_alone(fine, None)[1]
    nothing = RefereeVerdict(
        scores={"layer_integrated_gradients": Score(None, None)},
        better=None,
        difference=None,
        interval=None,
        sources=(),
        missed={},
    )
    assert "does not test them" in status_alone(fine, nothing)[1]


def test_folder_record_tables_and_replay(hybrid: LoadedModel, explained: Explanation, tmp_path: Path) -> None:
    folder = save(explained, tmp_path / "out")
    document, maps = read_folder(folder)
    reason = explained.rollout.refused
    assert document["refusals"] == dict.fromkeys(("attention_rollout", "gradient_weighted_rollout"), reason)
    assert sorted(maps) == ["features", "integrated_gradients", "leave_one_out", "removal_f", "removal_kept"]
    assert document["targets"][0]["rollout"]["sink_mass"] is None
    assert document["targets"][0]["sources"]["rollout"] == []
    assert summarize(document, record="x").unchecked == len(document["targets"])
    ((entry, _),) = read_log(folder)
    record, _ = explanation_record(begin(tmp_path / "log"), explained, warnings=document["warnings"])
    assert record.method.names == ("layer_integrated_gradients",)
    assert record.outcome.statuses == {"unchecked": len(document["targets"])}
    assert any(reason in warning for warning in record.warnings)
    export(folder, tmp_path / "tokens.csv")
    with (tmp_path / "tokens.csv").open(encoding="utf-8-sig", newline="") as stream:
        assert {row["rollout.sink_mass"] for row in csv.DictReader(stream)} == {""}
    assert recompute(folder, entry.id, model=hybrid).exit == 0
