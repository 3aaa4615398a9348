"""A model stored in 16 bits is evaluated in float32, as it is explained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny import answered, make_loaded

from llmxai.evaluation import Competitor, EvaluationContext, Row, make_case, measure
from llmxai.evaluation.measure import Comparison
from llmxai.models import LoadedModel

METHODS = [
    Competitor(name, name)
    for name in ("layer_integrated_gradients", "deletion_path", "gradient_x_input", "context_cite", "attention_rollout")
]


def compared(loaded: LoadedModel, precision: str) -> Comparison:
    generation = answered(loaded)
    text = "".join(generation.texts[: generation.prompt_len])
    row = Row(id="0", source="own", prompt=text, spans=((0, len(text) // 2),))
    context = EvaluationContext(loaded, METHODS, ("lds", "randomisation"), masks=8, precision=precision)
    return measure(context, make_case(loaded, row, generation, target="first"))


def test_a_model_stored_in_16_bits_gives_the_figures_of_its_weights_in_float32() -> None:
    stored = make_loaded("llama", dtype=torch.bfloat16)
    before = {name: weight.clone() for name, weight in stored.model.state_dict().items()}
    wide = replace(stored, model=make_loaded("llama", dtype=torch.bfloat16).model.float())
    found, expected = compared(stored, "float32"), compared(wide, "stored")
    assert found.f == pytest.approx(expected.f, abs=1e-6)
    for mine, other in zip(found.measured, expected.measured, strict=True):
        assert not mine.error
        assert mine.converged in (True, None)
        assert (mine.name, mine.nodes) == (other.name, other.nodes)
        lds = mine.figures["lds"]
        assert lds == pytest.approx(other.figures["lds"], abs=1e-6)
    assert all(weight.dtype == torch.bfloat16 for weight in stored.model.state_dict().values())
    assert all(torch.equal(weight, before[name]) for name, weight in stored.model.state_dict().items())


def test_in_its_own_precision_bfloat16_does_not_converge() -> None:
    """So the setting matters, and the test above can fail."""
    found = compared(make_loaded("llama", dtype=torch.bfloat16), "stored")
    assert not all(one.converged for one in found.measured if one.converged is not None)
