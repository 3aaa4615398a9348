"""Adapters: every kind of PEFT against PeftModel itself, and those that are refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import answered, make_model
from transformers import PreTrainedModel

from llmxai.errors import ModelLoadError, UnsupportedModelError
from llmxai.generation import replay
from llmxai.models import load, wrap

QV = ["q_proj", "v_proj"]


def made_adapter(folder: Path, config: Any, model: PreTrainedModel, *, scale: float = 0.0) -> PeftModel:
    """A PeftModel with its adapter in `folder`; `scale` moves weights that begin as zeros."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if scale and parameter.requires_grad and "base_layer" not in name:
                    parameter.add_(torch.randn_like(parameter) * scale)
    made.eval().save_pretrained(folder)
    return made


INSIDE: dict[str, Any] = {
    "lora": lambda: peft.LoraConfig(target_modules=QV),
    "rslora": lambda: peft.LoraConfig(target_modules=QV, use_rslora=True),
    "dora": lambda: peft.LoraConfig(target_modules=QV, use_dora=True),
    "lora with embeddings": lambda: peft.LoraConfig(target_modules=QV, modules_to_save=["embed_tokens", "lm_head"]),
    "adalora": lambda: peft.AdaLoraConfig(target_modules=QV, total_step=10),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[]),
    "loha": lambda: peft.LoHaConfig(target_modules=QV),
    "lokr": lambda: peft.LoKrConfig(target_modules=QV),
    "oft": lambda: peft.OFTConfig(target_modules=QV, oft_block_size=8, r=0),
    "boft": lambda: peft.BOFTConfig(target_modules=["q_proj"], boft_block_size=8),
    "vera": lambda: peft.VeraConfig(target_modules=["q_proj"], r=4),
    "hra": lambda: peft.HRAConfig(target_modules=QV, r=4),
    "fourierft": lambda: peft.FourierFTConfig(target_modules=QV, n_frequency=10),
    "ln_tuning": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
    "miss": lambda: peft.MissConfig(target_modules=QV, r=4),
    "randlora": lambda: peft.RandLoraConfig(target_modules=["q_proj"], r=4),
    "trainable tokens": lambda: peft.TrainableTokensConfig(
        token_indices=list(range(20, 390)), target_modules=["embed_tokens"]
    ),
    "adaption prompt": lambda: peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=2),
}
"""Adapters inside the layers."""
OUTSIDE: dict[str, Any] = {
    "prompt tuning": lambda: peft.PromptTuningConfig(num_virtual_tokens=3),
    "prefix tuning": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3),
    "p-tuning": lambda: peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=16),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", INSIDE)
def test_an_adapter_is_that_of_peft(kind: str, model_folder: Path, tmp_path: Path) -> None:
    """Loaded and wrapped, against PeftModel's own logits from ids; and it is not the base model."""
    plain = load(model_folder)
    config = INSIDE[kind]()
    config.task_type = "CAUSAL_LM"
    whole = made_adapter(tmp_path, config, load(model_folder).model, scale=0.3)
    generation = answered(plain)
    ids = torch.tensor([generation.ids])
    with torch.no_grad():
        rows = torch.log_softmax(whole(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].double(), dim=-1)
    n = generation.prompt_len
    want = [float(rows[n + t - 1, token]) for t, token in enumerate(generation.generated_ids)]
    assert replay(plain, generation).logprobs != pytest.approx(want, abs=1e-3)
    for adapted in (load(model_folder, adapter=tmp_path), wrap(whole, plain.tokenizer)):
        assert replay(adapted, generation).logprobs == pytest.approx(want, abs=1e-4)
        assert adapted.adapter


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", OUTSIDE)
def test_an_adapter_outside_the_layers_is_refused(kind: str, model_folder: Path, tmp_path: Path) -> None:
    config = OUTSIDE[kind]()
    config.task_type = "CAUSAL_LM"
    base = load(model_folder)
    whole = made_adapter(tmp_path, config, base.model)
    for use in (lambda: load(model_folder, adapter=tmp_path), lambda: wrap(whole, base.tokenizer)):
        with pytest.raises(UnsupportedModelError, match=r"works outside the model's layers.*model\.get_base_model\(\)"):
            use()
    assert replay(wrap(whole.get_base_model(), base.tokenizer), answered(base)).logprobs  # the suggestion


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("layers", "rename", "said"),
    [
        (5, ("", ""), "hold 8 that this model has no place for"),
        (1, ("", ""), "lack 8 of its weights"),
        (3, ("layers.1.", None), "lack 4 of its weights"),
        (3, ("model.layers", "transformer.h"), "lack 12 of its weights.*and hold 12 that"),
    ],
)
def test_an_adapter_that_is_incomplete_or_foreign_is_refused(
    layers: int, rename: tuple[str, str | None], said: str, model_folder: Path, tmp_path: Path
) -> None:
    made_adapter(
        tmp_path,
        peft.LoraConfig(task_type="CAUSAL_LM", target_modules=QV, r=4),
        make_model("llama", num_hidden_layers=layers),
    )
    file, (old, new) = tmp_path / "adapter_model.safetensors", rename
    weights = {name: value for name, value in load_file(file).items() if new is not None or old not in name}
    save_file({name.replace(old, new or ""): value for name, value in weights.items()}, file, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=rf"(?s)its files {said}.*made for another model"):
        load(model_folder, adapter=tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_an_adapters_folder_as_the_model_says_how_to_load_it(model_folder: Path, tmp_path: Path) -> None:
    """And what it says works."""
    made_adapter(tmp_path, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=QV), load(model_folder).model)
    with pytest.raises(ModelLoadError, match="is a PEFT adapter of") as told:
        load(tmp_path)
    base, adapter = re.findall(r"--model (\S+) --adapter (\S+) ", str(told.value))[0]
    assert load(base, adapter=adapter).adapter == str(tmp_path)
