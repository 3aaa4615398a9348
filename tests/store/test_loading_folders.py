"""An explanation that was saved, loaded again: the same one; and what is damaged is one clear paragraph."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tiny import make_classifier, make_encoder_decoder, make_loaded

from llmxai import Explanation, IntegratedGradients, Settings, explain, load_explanation
from llmxai.errors import OutputError
from llmxai.names import Status
from llmxai.store import read_folder, to_json, to_maps, write_folder
from llmxai.types import FullPrecision

GALLERY = Path(__file__).parents[2] / "tests" / "earlier" / "gallery"
ALSO = ("lime", "leave_one_out", "max_head_rollout")
FEW = Settings(gradients=IntegratedGradients(max_nodes=8))
Change = Callable[[dict[str, Any], dict[str, np.ndarray]], object]


def causal() -> Explanation:
    messages = [{"role": "user", "content": "The capital </script> of France"}]
    return explain(make_loaded("llama"), messages, max_new_tokens=3, settings=FEW)


def compared_with_full_precision() -> Explanation:
    explanation = causal()
    full = FullPrecision(
        model="tiny",
        dtype="float32",
        digest=None,
        replay=explanation.replay,
        cosines=(0.5, None, 1.0),
        same_source=(True, False, True),
        statuses=(Status.CONFIRMED, Status.UNDECIDED, Status.UNCONVERGED),
    )
    return replace(explanation, full_precision=full)


EXPLANATIONS: dict[str, Callable[[], Explanation]] = {
    "causal": causal,
    "given": lambda: explain(make_loaded("gpt2"), "The capital is", response=" Paris", settings=FEW),
    "classifier": lambda: explain(make_classifier(), "Hello there, how are you", settings=FEW),
    "encoder-decoder": lambda: explain(
        make_encoder_decoder(), "The capital", max_new_tokens=3, settings=replace(FEW, also=("lime", "leave_one_out"))
    ),
    "hybrid": lambda: explain(
        make_loaded("lfm2"), "The capital", max_new_tokens=2, settings=replace(FEW, also=("lime", "max_head_rollout"))
    ),
    "foil": lambda: explain(make_loaded(), "The capital is", response=" Paris", foil=" Rome", settings=FEW),
    "no removal": lambda: explain(
        make_loaded(), "The capital is", max_new_tokens=2, settings=replace(FEW, removal=None, also=("leave_one_out",))
    ),
    "also": lambda: explain(
        make_loaded(), "The capital of France is", max_new_tokens=3, settings=replace(FEW, also=ALSO)
    ),
    "full precision": compared_with_full_precision,
}


@pytest.fixture(scope="module", params=EXPLANATIONS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Explanation, Path]:
    explanation = EXPLANATIONS[request.param]()
    return explanation, write_folder(explanation, tmp_path_factory.mktemp("saved") / "one", render=lambda *_: "")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(EXPLANATIONS["also"](), tmp_path_factory.mktemp("whole") / "one", render=lambda *_: "")


def test_the_document_the_maps_and_what_is_printed_are_the_same(saved: tuple[Explanation, Path]) -> None:
    explanation, folder = saved
    loaded = load_explanation(folder)
    document = json.loads((folder / "explanation.json").read_text(encoding="utf-8"))
    assert loaded.to_dict() == document
    assert json.loads(json.dumps(loaded.to_dict())) == document
    maps, again = load_file(folder / "maps.safetensors"), to_maps(loaded)
    assert maps.keys() == again.keys()
    for name, values in maps.items():
        assert (values.dtype, values.shape, values.tobytes()) == (
            again[name].dtype,
            again[name].shape,
            again[name].tobytes(),
        )
    assert repr(loaded) == repr(explanation)
    assert loaded.summary() == explanation.summary()
    assert list(loaded.scores) == list(explanation.scores)
    assert (loaded.settings, loaded.generation, loaded.replay) == (
        explanation.settings,
        explanation.generation,
        explanation.replay,
    )
    assert loaded.checks == explanation.checks
    assert loaded == explanation


def test_the_tensors_are_those_of_before_rounded_to_float32(saved: tuple[Explanation, Path]) -> None:
    explanation, folder = saved
    loaded = load_explanation(folder)
    for name, scores in explanation.scores.items():
        again = loaded.scores[name]
        assert (again.signed, again.refused) == (scores.signed, scores.refused)
        assert torch.equal(again.values, scores.values.float().double())
        assert torch.equal(again.features, scores.features)
        assert (again.null is None) == (scores.null is None)
        assert dict(again.settings) == json.loads(json.dumps(dict(scores.settings)))
        if scores.refused is None and name == "attention_rollout":
            assert scores.curve is not None
            assert again.curve is not None
            assert torch.equal(again.curve.sink_mass, scores.curve.sink_mass)
            assert torch.equal(again.lost_mass, scores.lost_mass)
    before, after = explanation.gradients.certificate, loaded.gradients.certificate
    assert before is not None
    assert after is not None
    assert torch.equal(after.gap, before.gap)
    assert (after.nodes, after.converged) == (before.nodes, before.converged)
    before, after = explanation.deletion.certificate, loaded.deletion.certificate
    assert (before is None) == (after is None) == (explanation.deletion.refused is not None)
    if before is not None:
        for name in ("f_input", "f_baseline", "gap", "local_error", "tolerance"):
            assert torch.equal(getattr(after, name), getattr(before, name).double())
        assert (after.nodes, after.converged) == (before.nodes, before.converged)
    if explanation.effects is None:
        assert loaded.effects is None
    else:
        assert torch.equal(loaded.effects.drop, explanation.effects.drop)
        assert torch.equal(loaded.effects.f_masked, explanation.effects.f_masked)
        assert torch.equal(loaded.effects.kept, explanation.effects.kept)
        own, other = explanation.effects, loaded.effects
        assert other.hidden == own.hidden
        assert torch.equal(other.hidden_drop.isnan(), own.hidden_drop.isnan())
        assert torch.equal(other.hidden_drop.nan_to_num(), own.hidden_drop.nan_to_num())
        for name in ("effect", "low", "high"):
            before, after = getattr(own, name), getattr(other, name)
            assert (before is None) == (after is None)
            assert before is None or torch.equal(after, before)
        assert other.pair == own.pair
        assert other.ceiling == pytest.approx(own.ceiling, abs=1e-4)


def test_a_method_whose_defaults_do_not_fit_the_model_is_refused_and_the_rest_delivered() -> None:
    explanation = EXPLANATIONS["encoder-decoder"]()
    assert "cannot delete tokens from both sides" in (explanation.scores["lime"].refused or "")
    assert explanation.scores["leave_one_out"].refused is None
    assert list(to_json(explanation)["refusals"]) == ["lime"]


def test_the_effects_and_the_method_leave_one_out_have_names_of_their_own(whole: Path) -> None:
    """The effects are by unit of the prompt; the method spreads each over the tokens of its unit."""
    document, maps = read_folder(whole)
    units, tokens = document["ablations"]["units"], len(document["tokens"])
    assert maps["leave_one_out"].shape == (3, len(units))
    assert maps["leave_one_out.tokens"].shape == maps["leave_one_out.tokens.features"].shape == (3, tokens)
    sources = document["targets"][0]["sources"]
    assert set(sources["leave_one_out"][0]) == {"unit", "value", "share"}
    assert set(sources["leave_one_out.tokens"][0]) == {"index", "value", "share"}
    by_unit = np.stack([maps["leave_one_out.tokens"][:, a:b].sum(axis=1) for a, b in units], axis=1)
    assert by_unit == pytest.approx(maps["leave_one_out"], abs=1e-4)


def test_attention_methods_list_the_sources_of_the_same_tokens(whole: Path) -> None:
    """Attention also goes to the template; what is listed is compared with the gradients, and so has their features."""
    document, maps = read_folder(whole)
    for t, target in enumerate(document["targets"]):
        listed = [source["index"] for source in target["sources"]["max_head_rollout"]]
        assert listed
        assert maps["features"][t, listed].all()


def test_an_older_folder_is_refused_in_one_paragraph() -> None:
    folder = next(GALLERY.glob("records/*"))
    with pytest.raises(
        OutputError, match=r"schema 'llmxai\.explanation/2'.*llmxai report.*explain the answer again"
    ) as e:
        load_explanation(folder)
    assert "\n" not in str(e.value)


def drop(*path: Any) -> Change:
    """Take a key out of the document."""

    def change(document: dict[str, Any], _maps: object) -> None:
        *way, last = path
        for step in way:
            document = document[step]
        del document[last]

    return change


def put(*path: Any) -> Change:
    """Put a value, the last argument, into the document."""
    *way, last, value = path

    def change(document: dict[str, Any], _maps: object) -> None:
        for step in way:
            document = document[step]
        document[last] = value

    return change


DAMAGE: dict[str, Change] = {
    "no gradients": lambda _, maps: maps.pop("integrated_gradients"),
    "no features": lambda _, maps: maps.pop("features"),
    "no rollout": lambda _, maps: maps.pop("rollout"),
    "no null": lambda _, maps: maps.pop("rollout_null"),
    "no lime": lambda _, maps: maps.pop("lime"),
    "no features of lime": lambda _, maps: maps.pop("lime.features"),
    "no deletion path": lambda _, maps: maps.pop("deletion_path"),
    "no features of the deletion path": lambda _, maps: maps.pop("deletion_path.features"),
    "no effects' lower ends": lambda _, maps: maps.pop("effect_low"),
    "effects in single precision": lambda _, maps: maps.update(effect=maps["effect"].astype(np.float32)),
    "no F with words hidden": lambda _, maps: maps.pop("removal_hidden_f"),
    "not said where it is undefined": lambda _, maps: maps.pop("removal_hidden_undefined"),
    "a hidden set too few": lambda _, maps: maps.update(removal_hidden_f=maps["removal_hidden_f"][:, 1:]),
    "no effects": drop("effects"),
    "an effect's unit of texts": put("effects", "units", 0, "kind", "mentions"),
    "an unknown status of attention": lambda document, _: document["targets"][0]["verdict"].update(attention="fine"),
    "no verdict": drop("targets", 0, "verdict"),
    "no error of the deletion path": put("targets", 0, "deletion", None),
    "no F without the units": lambda _, maps: maps.pop("removal_f"),
    "a target too few": lambda _, maps: maps.update(rollout=maps["rollout"][:-1]),
    "a token too many": lambda _, maps: maps.update(lime=np.pad(maps["lime"], ((0, 0), (0, 1)))),
    "a unit too few": lambda _, maps: maps.update(leave_one_out=maps["leave_one_out"][:, 1:]),
    "a subset too few": lambda _, maps: maps.update(removal_kept=maps["removal_kept"][1:]),
    "one axis": lambda _, maps: maps.update(integrated_gradients=maps["integrated_gradients"].ravel()),
    "half precision": lambda _, maps: maps.update(rollout=maps["rollout"].astype(np.float16)),
    "features as numbers": lambda _, maps: maps.update(features=maps["features"].astype(np.float32)),
    "no targets": drop("targets"),
    "a target too few in the document": lambda document, _: document["targets"].pop(),
    "targets are a text": put("targets", "abc"),
    "targets are numbers": put("targets", [1, 2, 3]),
    "no tokens": put("tokens", []),
    "tokens are a number": put("tokens", 7),
    "no gap": drop("targets", 0, "gap"),
    "a gap in words": put("targets", 0, "gap", "small"),
    "a gap as a text": put("targets", 0, "gap", "0.1"),
    "no gap at all": put("targets", 0, "gap", None),
    "half a node": put("targets", 0, "nodes", 1.5),
    "an unknown status": put("targets", 0, "status", "perfect"),
    "an unknown role": put("tokens", 0, "role", "king"),
    "a text that is a number": put("tokens", 0, "text", 7),
    "an id that is a text": put("tokens", 0, "id", "7"),
    "a word of three": put("words", 0, [0, 1, 2]),
    "agreement is a list": put("targets", 0, "agreement", []),
    "agreement misses a figure": drop("targets", 0, "agreement", "kendall"),
    "rollout is a list": put("targets", 0, "rollout", []),
    "the curve is a list": put("targets", 0, "curve", [1, 2]),
    "a verdict of another shape": put("targets", 0, "referee", {"better": 3}),
    "a prompt without an end": put("generation", "prompt_len", 999),
    "generation is a list": put("generation", []),
    "settings are missing": drop("settings"),
    "settings are a list": put("settings", [1]),
    "an unknown setting": put("settings", {"color": "red"}),
    "a setting out of range": put("settings", "gradients", "max_nodes", -1),
    "no scores": put("scores", {}),
    "scores are a list": put("scores", []),
    "a method without its settings": drop("scores", "lime", "settings"),
    "signed is a text": put("scores", "lime", "signed", "yes"),
    "no replay tolerance": drop("computed", "replay_tolerance"),
    "computed is a list": put("computed", []),
    "units are pairs of texts": put("ablations", "units", [["a", "b"]]),
    "ablations are a list": put("ablations", []),
    "the environment is a text": put("environment", "here"),
    "full precision of another shape": put("full_precision", {"model": "x"}),
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_one_clear_paragraph(whole: Path, tmp_path: Path, change: Change) -> None:
    document = json.loads((whole / "explanation.json").read_text(encoding="utf-8"))
    maps = load_file(whole / "maps.safetensors")
    change(document, maps)
    (tmp_path / "explanation.json").write_text(json.dumps(document), encoding="utf-8")
    save_file({name: np.ascontiguousarray(values) for name, values in maps.items()}, tmp_path / "maps.safetensors")
    with pytest.raises(OutputError, match=r"does not match its schema|do not belong to this") as error:
        load_explanation(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("name", ["explanation.json", "maps.safetensors"])
def test_a_missing_or_a_broken_file(whole: Path, tmp_path: Path, name: str) -> None:
    for each in ("explanation.json", "maps.safetensors"):
        (tmp_path / each).write_bytes((whole / each).read_bytes())
    (tmp_path / name).write_bytes((whole / name).read_bytes()[:-100])
    with pytest.raises(OutputError, match="no explanation can be read"):
        load_explanation(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(OutputError, match="no explanation can be read"):
        load_explanation(tmp_path)


def test_a_loaded_explanation_can_be_saved_and_shown(whole: Path, tmp_path: Path) -> None:
    loaded = load_explanation(whole)
    again = loaded.save(tmp_path / "again")
    assert load_explanation(again).to_dict() == loaded.to_dict() == to_json(loaded)
    assert "Where the answer" in loaded.to_html()
