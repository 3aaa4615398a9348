"""The output folder: exactly what docs/explanation-folder.md says, whole or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tiny import make_loaded

import llmxai.store.folder
from llmxai import Explanation, IntegratedGradients, Settings, explain
from llmxai.crosscheck.verdict import candidates
from llmxai.errors import NonFiniteError, OutputError
from llmxai.settings import settings_from
from llmxai.store import SCHEMA, read_folder, require_writable, to_json, upgraded, write_folder
from llmxai.store.reading import SHAPES

FILES = ["explanation.json", "maps.safetensors", "report.html"]


def nodes(n: int) -> Settings:
    return Settings(gradients=IntegratedGradients(max_nodes=n))


@pytest.fixture(scope="module")
def explanation() -> Explanation:
    messages = [{"role": "user", "content": "The capital </script> of France"}]
    return explain(make_loaded("llama"), messages, max_new_tokens=4, settings=nodes(16))


@pytest.fixture(scope="module")
def given_answer() -> Explanation:
    return explain(make_loaded("llama"), "The capital of France is", response=" Paris", settings=nodes(8))


def page(document: Mapping[str, Any], maps: Mapping[str, np.ndarray], digests: Mapping[str, str]) -> str:
    assert sorted(digests) == ["explanation.json", "maps.safetensors"]
    return f"<html>{document['schema']} {sorted(maps)}</html>"


def fail(*_: object) -> str:
    raise RuntimeError("a bug in the report")


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_round_trip(explanation: Explanation, tmp_path: Path) -> None:
    out = write_folder(explanation, tmp_path / "deep" / "er", render=page)
    document, maps = read_folder(out)
    assert entries(out) == FILES
    assert entries(out.parent) == ["er"]
    stored = upgraded(json.loads(json.dumps(to_json(explanation))))
    assert {**document, "created": ""} == {**stored, "created": ""}
    assert np.allclose(maps["integrated_gradients"], explanation.gradients.values.numpy(), atol=1e-6)
    assert np.allclose(maps["rollout"], explanation.rollout.values.numpy(), atol=1e-6)
    assert (out / "report.html").read_text() == f"<html>{SCHEMA} {sorted(maps)}</html>"


def test_json_has_no_nan(explanation: Explanation, tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    out = write_folder(explanation, tmp_path / "a", render=page)
    json.loads((out / "explanation.json").read_text(encoding="utf-8"), parse_constant=refuse)


def test_maps_are_float32_rows_of_targets(explanation: Explanation, tmp_path: Path) -> None:
    out = write_folder(explanation, tmp_path / "a", render=page)
    maps = load_file(out / "maps.safetensors")
    shape, effects = (explanation.generation.n_targets, len(explanation.generation.ids)), explanation.effects
    units, masks, hidden = (len(part) for part in (effects.units, effects.kept, effects.hidden))
    followed, traced = explanation.trace.steps.shape
    assert hidden > 0
    assert followed > 0
    assert {name: (m.shape, m.dtype) for name, m in maps.items()} == {
        "integrated_gradients": (shape, np.float32),
        "features": (shape, np.uint8),
        "rollout": (shape, np.float32),
        "rollout_null": (shape, np.float32),
        "rollout_variant": (shape, np.float32),
        "rollout_variant_null": (shape, np.float32),
        "leave_one_out": ((shape[0], units), np.float32),
        "removal_f": ((shape[0], units + masks), np.float64),
        "removal_kept": ((masks, units), np.uint8),
        "deletion_path": (shape, np.float32),
        "deletion_path.features": (shape, np.uint8),
        "effect": ((shape[0], units), np.float64),
        "effect_low": ((shape[0], units), np.float64),
        "effect_high": ((shape[0], units), np.float64),
        "removal_hidden_f": ((shape[0], hidden), np.float64),
        "removal_hidden_undefined": ((shape[0], hidden), np.uint8),
        "trace_direct": ((shape[0], traced), np.float64),
        "trace_steps": ((followed, traced), np.float64),
        "trace_effects": ((followed, traced), np.float64),
        "trace_effects_undefined": ((followed, traced), np.uint8),
    }
    assert (maps["integrated_gradients"][~explanation.gradients.features.numpy()] == 0).all()


TARGET_KEYS = (
    "position tokens id text foil logprob replayed_logprob f rank status reason verdict gap local_error "
    "tolerance nodes deletion f_input f_baseline net converged floor agreement agreement_variant rollout "
    "rollout_variant curve referee traced direct sources"
)
AGREEMENT = "spearman spearman_p recency_p adjusted_p kendall top_k top_k_overlap rank_biased_overlap jensen_shannon"
ROLLOUT = "sink_mass feature_mass lost_mass entropy null_divergence similarity"
KEYS = {
    (): (
        "schema created generation tokens words parts targets trace verdict effects documents spans context ablations "
        "refusals full_precision variant scores settings computed environment warnings"
    ),
    ("scores",): "layer_integrated_gradients deletion_path attention_rollout gradient_weighted_rollout",
    ("scores", "attention_rollout"): "source signed refused settings",
    ("settings",): "features gradients deletion rollout removal also compute",
    ("computed",): (
        "target features held baseline tolerance max_nodes n_steps rule dtype gradient_dtype "
        "panels_computed_again_in_dtype chunk_tokens chunk_halvings checkpoint rollout crosscheck replay_tolerance "
        "precision"
    ),
    ("generation",): "prompt_len stop request decoding source_len classes read_at answer notes",
    ("tokens", 0): "index id text role",
    ("tokens", -1): "index id text role logprob replayed_logprob rank",
    ("trace",): "method units rest passages",
    ("trace", "units", 0): "kind tokens text",
    ("trace", "passages", 0): "kind tokens text traced direct",
    ("targets", 0, "traced", 0): "unit text share direct path",
    ("targets", 0, "traced", 0, "path", 0): "unit text share effect",
    ("targets", 0, "direct", 0): "unit text share",
    ("targets", 0): TARGET_KEYS,
    ("targets", 0, "verdict"): "sources attention reason attention_reason rule",
    ("targets", 0, "deletion"): "f_input f_baseline gap local_error tolerance nodes converged floor",
    ("effects",): "confidence units effect low high probability probability_without explained together",
    ("effects", "units", 0): "kind tokens text",
    ("targets", 0, "agreement"): AGREEMENT,
    ("targets", 0, "agreement_variant"): AGREEMENT,
    ("targets", 0, "rollout"): ROLLOUT,
    ("targets", 0, "rollout_variant"): ROLLOUT,
    ("targets", 0, "curve"): "sink_mass entropy null_divergence similarity",
    ("targets", 0, "referee"): "better difference interval scores sources missed read",
    ("targets", 0, "referee", "missed"): (
        "layer_integrated_gradients attention_rollout gradient_weighted_rollout deletion_path"
    ),
    ("targets", 0, "referee", "scores"): (
        "layer_integrated_gradients attention_rollout gradient_weighted_rollout deletion_path leave_one_out"
    ),
    ("targets", 0, "referee", "scores", "attention_rollout"): "lds leave_one_out",
    ("targets", 0, "sources"): "integrated_gradients deletion_path rollout rollout_variant leave_one_out",
    ("targets", 0, "sources", "rollout_variant", 0): "index value share",
    ("targets", 0, "sources", "leave_one_out", 0): "unit value share",
    ("ablations",): "operator units masks answer_drop kind kept_share seed baseline chunk_tokens chunk_halvings",
    ("variant",): "method source settings",
    ("targets", 0, "sources", "rollout", 0): "index value share",
    ("targets", 0, "sources", "integrated_gradients", 0): "index value share",
    ("environment",): "llmxai python packages model hardware",
    ("environment", "model"): (
        "name revision digest architecture parameters dtype device quantization adapter attention "
        "weight_files tokenizer_digest chat_template_digest config_digest generation_config_digest remote_code identity"
    ),
}


@pytest.mark.parametrize("path", KEYS, ids=str)
def test_keys_are_those_of_the_document(explanation: Explanation, path: tuple[Any, ...]) -> None:
    value: Any = to_json(explanation)
    for step in path:
        value = value[step]
    assert sorted(value) == sorted(KEYS[path].split())


def test_the_keys_stand_in_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "explanation-folder.md").read_text(encoding="utf-8")
    missing = [key for keys in KEYS.values() for key in keys.split() if key not in text]
    assert missing == []
    assert SCHEMA in text
    assert [name for name in SHAPES if f"`{name}`" not in text] == []


def test_settings_say_everything_that_was_chosen(explanation: Explanation) -> None:
    wanted = {"target", "features", "held", "baseline", "tolerance", "max_nodes", "rollout", "crosscheck"}
    assert wanted <= set(to_json(explanation)["computed"])
    assert settings_from(to_json(explanation)["settings"]) == explanation.settings


def test_targets_tell_what_was_measured(explanation: Explanation) -> None:
    document = to_json(explanation)
    generation, gradients = explanation.generation, explanation.gradients
    for t, target in enumerate(document["targets"]):
        position = generation.prompt_len + t
        token = document["tokens"][position]
        assert (target["position"], target["id"], target["text"]) == (position, token["id"], token["text"])
        assert target["replayed_logprob"] == pytest.approx(target["logprob"], abs=2e-3)
        assert target["f_input"] == pytest.approx(target["replayed_logprob"], abs=1e-3)
        assert target["net"] == target["f_input"] - target["f_baseline"]
        assert target["converged"] == (target["local_error"] <= target["tolerance"])
        assert abs(target["gap"]) <= target["local_error"] + 1e-9
        found, error = candidates(explanation.deletion, explanation.effects, t), target["deletion"]
        margin = found[0].score - found[1].score
        assert (target["status"] == "unconverged") == (not error["converged"] and error["local_error"] > margin / 2)
        assert target["gap"] == pytest.approx(float(gradients.values[t].sum()) - target["net"], abs=1e-6)
    assert document["generation"]["answer"] == "".join(t["text"] for t in document["targets"])
    assert "".join(t["text"] for t in document["tokens"]) == "".join(generation.texts)


def test_sources_are_sorted_and_their_shares_add_up(explanation: Explanation) -> None:
    for t, target in enumerate(to_json(explanation)["targets"]):
        for name, values in (
            ("integrated_gradients", explanation.gradients.values),
            ("rollout", explanation.rollout.values),
            ("rollout_variant", explanation.variant.values),
        ):
            sources = target["sources"][name]
            sizes = [abs(source["value"]) for source in sources]
            assert sizes == sorted(sizes, reverse=True)
            assert len(sources) == min(20, int(explanation.gradients.features[t].sum()))
            assert sum(source["share"] for source in sources) == pytest.approx(1, abs=1e-9) or len(sources) == 20
            assert all(source["value"] == float(values[t, source["index"]].float()) for source in sources)  # the map's


def test_leave_one_out_tells_how_far_the_log_prob_falls(explanation: Explanation) -> None:
    document = to_json(explanation)
    assert explanation.effects is not None
    for t, target in enumerate(document["targets"]):
        sources = target["sources"]["leave_one_out"]
        assert len(sources) == min(20, len(document["ablations"]["units"]))
        for source in sources:
            fall = explanation.effects.f_full[t] - explanation.effects.f_without[t, source["unit"]]
            assert source["value"] == float(fall)
        assert sum(source["share"] for source in sources) == pytest.approx(1, abs=1e-9) or len(sources) == 20


def test_without_a_referee(explanation: Explanation, tmp_path: Path) -> None:
    checks = tuple(replace(check, verdict=None) for check in explanation.checks)
    out = write_folder(replace(explanation, effects=None, checks=checks), tmp_path / "out", render=page)
    document, maps = read_folder(out)
    assert document["ablations"] is None
    assert "leave_one_out" not in maps
    for target in document["targets"]:
        assert target["referee"] is None
        assert target["sources"]["leave_one_out"] == []


def test_a_given_answer_has_no_recorded_logprob(given_answer: Explanation) -> None:
    document = to_json(given_answer)
    assert document["targets"][0]["logprob"] is None
    assert document["generation"]["stop"] == "given"
    assert document["generation"]["request"] == {"prompt": "The capital of France is", "response": " Paris"}
    assert "The answer was supplied, not generated" in document["warnings"][0]


def test_warnings(explanation: Explanation) -> None:
    assert to_json(explanation)["warnings"] == ["The answer was cut off at 4 tokens, before the model ended it."]
    model = {**explanation.environment["model"], "quantization": "bitsandbytes 4bit"}
    quantised = replace(explanation, environment={**explanation.environment, "model": model})
    assert "bitsandbytes 4bit" in to_json(quantised)["warnings"][1]


# whole or not at all


def test_a_render_that_fails_leaves_nothing(explanation: Explanation, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug in the report"):
        write_folder(explanation, tmp_path / "out", render=fail)
    assert entries(tmp_path) == []


@pytest.mark.parametrize("error", [OSError("disk full"), SafetensorError("disk full"), RuntimeError("a bug")])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_write_that_fails_leaves_what_was_there(
    explanation: Explanation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool, error: Exception
) -> None:
    out = tmp_path / "out"
    if earlier:
        write_folder(explanation, out, render=lambda *_: "earlier")

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(llmxai.store.folder, "save_file", refuse)
    with pytest.raises(RuntimeError if str(error) == "a bug" else OutputError, match=str(error)):
        write_folder(explanation, out, render=page, replace=True)
    assert entries(tmp_path) == (["out"] if earlier else [])
    if earlier:
        assert (out / "report.html").read_text() == "earlier"
        assert entries(out) == FILES


def test_a_failing_rename_keeps_the_earlier_folder(
    explanation: Explanation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = write_folder(explanation, tmp_path / "out", render=lambda *_: "earlier")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if Path(target) == out / "maps.safetensors" and "-old-" not in self.parent.name:
            raise OSError("no rename today")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OutputError, match="no rename today"):
        write_folder(explanation, out, render=page, replace=True)
    assert (out / "report.html").read_text() == "earlier"
    assert entries(tmp_path) == ["out"]


def test_an_earlier_explanation_is_replaced_if_that_is_asked_for(explanation: Explanation, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_folder(explanation, out, render=lambda *_: "first")
    with pytest.raises(OutputError, match=f"holds the explanation of {re.escape(explanation.created)}.*replace=True"):
        write_folder(explanation, out, render=lambda *_: "second")
    assert (out / "report.html").read_text() == "first"
    write_folder(explanation, out, render=lambda *_: "second", replace=True)
    assert (out / "report.html").read_text() == "second"
    assert entries(tmp_path) == ["out"]


def test_a_folder_with_other_files_is_left_alone(explanation: Explanation, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"holds 'thesis\.tex', which llmxai did not write.*--out"):
        write_folder(explanation, tmp_path, render=page)
    assert entries(tmp_path) == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder(explanation: Explanation, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        write_folder(explanation, tmp_path / "file", render=page)
    with pytest.raises(OutputError, match="cannot be written"):
        write_folder(explanation, tmp_path / "file" / "below", render=page)
    with pytest.raises(OutputError, match="cannot be written"):  # before there is anything to write
        require_writable(tmp_path / "file" / "below", replace=False)
    assert entries(tmp_path) == ["file"]


@pytest.mark.parametrize("place", ["link", "link/below", "n" * 300, f"{'n' * 300}/below"])
def test_what_can_be_no_folder_is_refused_before_there_is_anything_to_write(tmp_path: Path, place: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    words = "link: is a link to .*nowhere, which does not exist" if "link" in place else "cannot be written"
    with pytest.raises(OutputError, match=words):
        require_writable(tmp_path / place, replace=False)


@pytest.mark.parametrize("which", ["layer_integrated_gradients", "attention_rollout", "gradient_weighted_rollout"])
def test_nan_is_never_written(explanation: Explanation, tmp_path: Path, which: str) -> None:
    bad = torch.full_like(explanation.gradients.values, float("nan"))
    spoilt = {**explanation.scores, which: replace(explanation.scores[which], values=bad)}
    with pytest.raises(NonFiniteError, match="nothing was written"):
        write_folder(replace(explanation, scores=spoilt), tmp_path / "out", render=page)
    assert entries(tmp_path) == []


# reading what is not ours


@pytest.mark.parametrize("content", [None, "not json", '{"schema": "other/1"}', "[]"])
def test_a_folder_that_is_not_ours(explanation: Explanation, tmp_path: Path, content: str | None) -> None:
    out = write_folder(explanation, tmp_path / "out", render=page)
    if content is None:
        (out / "explanation.json").unlink()
    else:
        (out / "explanation.json").write_text(content)
    with pytest.raises(OutputError, match=r"no explanation can be read|its schema is|holds a list"):
        read_folder(out)


def test_broken_maps(explanation: Explanation, tmp_path: Path) -> None:
    out = write_folder(explanation, tmp_path / "out", render=page)
    (out / "maps.safetensors").write_bytes(b"broken")
    with pytest.raises(OutputError, match="no explanation can be read"):
        read_folder(out)
