"""Where attention rollout is not defined for the model, the rest is delivered and the refusal is said everywhere."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import answered, make_loaded

from llmxai import Explanation, Status, explain, save
from llmxai.crosscheck.verdict import candidates, sources_verdict
from llmxai.errors import NonFiniteError, UnsupportedModelError
from llmxai.evidence import begin
from llmxai.evidence.log import read_log
from llmxai.evidence.recorder import explanation_record
from llmxai.methods import attention_rollout, layer_integrated_gradients
from llmxai.methods.perturbation import removal as removal_module
from llmxai.models import LoadedModel
from llmxai.names import CURRENT, AttentionStatus
from llmxai.recompute import recompute
from llmxai.report.export import export
from llmxai.report.rows import summarize
from llmxai.settings import IntegratedGradients, Settings
from llmxai.store import read_folder
from llmxai.store.loading import load_explanation

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
    assert explained.deletion.refused is not None
    assert not explained.deletion.values.any()
    assert explained.scores_of() is explained.gradients
    for t, check in enumerate(explained.checks):
        assert (check.attention, check.attention_reason) == (
            AttentionStatus.REFUSED,
            "Attention rollout is not defined for this model.",
        )
        judged = sources_verdict(explained.generation, explained.gradients, explained.effects, t)
        assert (check.status, check.reason) == judged, "the gradients are judged in the place of the deletion path"
        assert check.status in CURRENT
        assert check.verdict is not None
        assert set(check.verdict.scores) == {"layer_integrated_gradients", "leave_one_out"}
        assert (check.verdict.better, check.verdict.interval) == (None, None)
        assert (check.dilution, check.agreement.spearman, check.agreement.top_k_overlap) == (None, None, None)


def test_an_unconverged_token_stays_unconverged(hybrid: LoadedModel) -> None:
    few = Settings(gradients=IntegratedGradients(max_nodes=4), removal=None)
    result = explain(hybrid, PROMPT, response=RESPONSE, settings=few)
    assert result.gradients.certificate is not None
    statuses = [check.status for check in result.checks]
    certificate, want = result.gradients.certificate, []
    for t, row in enumerate(result.gradients.values.tolist()):
        first, second, *_ = sorted((sum(row[start:end]) for start, end in result.generation.words), reverse=True)
        coarse = not certificate.converged[t] and float(certificate.local_error[t]) > (first - second) / 2
        want.append(Status.UNCONVERGED if coarse else Status.UNDECIDED)
    assert statuses == want
    assert Status.UNCONVERGED in want
    for check in result.checks:
        said = {
            Status.UNDECIDED: "Nothing was removed, so the contributions were not checked.",
            Status.UNCONVERGED: "which is too much to say which source comes first.",
        }
        assert check.reason.endswith(said[check.status])


def test_an_error_that_cannot_change_what_comes_first_leaves_the_verdict(hybrid: LoadedModel) -> None:
    few = Settings(gradients=IntegratedGradients(max_nodes=4))
    result = explain(hybrid, PROMPT, response=RESPONSE, settings=few)
    assert result.effects is not None
    for t, check in enumerate(result.checks):
        first, second, *_ = candidates(result.gradients, result.effects, t)
        certificate = result.gradients.certificate
        off = not certificate.converged[t] and float(certificate.local_error[t]) > (first.score - second.score) / 2
        assert (check.status == Status.UNCONVERGED) == off


def test_folder_record_tables_and_replay(hybrid: LoadedModel, explained: Explanation, tmp_path: Path) -> None:
    folder = save(explained, tmp_path / "out")
    document, maps = read_folder(folder)
    reason = explained.rollout.refused
    assert document["refusals"] == {
        "deletion_path": explained.deletion.refused,
        **dict.fromkeys(("attention_rollout", "gradient_weighted_rollout"), reason),
    }
    assert sorted(maps) == [
        *("effect", "effect_high", "effect_low", "features", "integrated_gradients", "leave_one_out"),
        *("removal_f", "removal_kept", "trace_direct", "trace_effects", "trace_effects_undefined", "trace_steps"),
    ]
    assert document["targets"][0]["rollout"]["sink_mass"] is None
    assert document["targets"][0]["sources"]["rollout"] == []
    statuses = Counter(target["status"] for target in document["targets"])
    row = summarize(document, record="x")
    assert {status: getattr(row, status) for status in CURRENT} == {status: statuses[status] for status in CURRENT}
    assert row.unchecked == 0
    assert {target["verdict"]["attention"] for target in document["targets"]} == {"refused"}
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Attention cannot be read on this model: rollout is not defined for it." in page
    ((entry, _),) = read_log(folder)
    record, _ = explanation_record(begin(tmp_path / "log"), explained, warnings=document["warnings"])
    assert record.method.names == ("layer_integrated_gradients",)
    assert record.outcome.statuses == statuses
    assert any(reason in warning for warning in record.warnings)
    export(folder, tmp_path / "tokens.csv")
    with (tmp_path / "tokens.csv").open(encoding="utf-8-sig", newline="") as stream:
        assert {row["rollout.sink_mass"] for row in csv.DictReader(stream)} == {""}
    assert recompute(folder, entry.id, model=hybrid).exit == 0


FEW = Settings(gradients=IntegratedGradients(max_nodes=8))


def test_a_prompt_of_one_word_leaves_its_sources_open(tiny_llama: LoadedModel, tmp_path: Path) -> None:
    result = explain(tiny_llama, "Paris", response=" Rome", settings=FEW)
    assert result.effects is not None
    assert result.effects.units == ()
    open_or_coarse = {check.status for check in result.checks} <= {Status.UNDECIDED, Status.UNCONVERGED}
    assert open_or_coarse
    said = [check.reason for check in result.checks if check.status == Status.UNDECIDED]
    assert said
    assert all("parts of the text could be removed: too few to compare." in reason for reason in said)
    assert load_explanation(save(result, tmp_path / "out")).checks == result.checks


def test_a_log_prob_that_nothing_moves_has_no_sources(tmp_path: Path) -> None:
    loaded = make_loaded("llama")
    with torch.no_grad():
        loaded.model.lm_head.weight.zero_()  # every token has the same probability, whatever comes before
    result = explain(loaded, PROMPT, response=RESPONSE, settings=FEW)
    assert result.effects is not None
    assert float(result.effects.drop.abs().max()) < 1e-6
    assert set(result.effects.ceiling) == {None}, "a share of no variance is no number"
    for check in result.checks:
        assert (check.status, "no one word is known to decide this token" in check.reason) == (Status.UNDECIDED, True)
        assert check.verdict is not None
        assert {score.lds for score in check.verdict.scores.values()} == {None}
    assert load_explanation(save(result, tmp_path / "out")).checks == result.checks


def test_a_model_that_refuses_float_masks_is_judged_by_what_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded = make_loaded("llama")
    attention = type(loaded.model.model.layers[0].self_attn)
    real = attention.forward

    def boolean_only(self: Any, *args: Any, attention_mask: Any = None, **options: Any) -> Any:
        if attention_mask is not None and attention_mask.is_floating_point():
            raise TypeError("expected a boolean mask")
        return real(self, *args, attention_mask=attention_mask, **options)

    monkeypatch.setattr(attention, "forward", boolean_only)
    result = explain(loaded, PROMPT, response=RESPONSE, settings=FEW)
    assert result.deletion.refused is not None
    assert "expected a boolean mask" in result.deletion.refused
    assert result.effects is not None
    assert result.effects.hidden == ()
    assert result.effects.effect is not None
    for t, check in enumerate(result.checks):
        judged = sources_verdict(result.generation, result.gradients, result.effects, t)
        assert (check.status, check.reason) == judged
    assert load_explanation(save(result, tmp_path / "out")).checks == result.checks


def test_nan_where_parts_are_removed_is_an_error_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As where float16 overflows on a prompt that was never given."""
    loaded = make_loaded("llama")
    real = removal_module.forward_logits

    def hollow(*args: Any, **options: Any) -> Any:
        logits = real(*args, **options)
        return torch.where(torch.tensor(len(options["ids"]) > 1), torch.nan, logits)

    monkeypatch.setattr(removal_module, "forward_logits", hollow)
    with pytest.raises(NonFiniteError, match=r"NaN.*parts of the prompt removed.*--no-removal"):
        save(explain(loaded, PROMPT, response=RESPONSE, settings=FEW), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    kept = explain(loaded, PROMPT, response=RESPONSE, settings=replace(FEW, removal=None))
    assert {check.status for check in kept.checks} <= {Status.UNDECIDED, Status.UNCONVERGED}
