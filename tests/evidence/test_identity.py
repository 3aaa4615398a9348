"""One identity of a model: what changes its numbers changes that; ledger, record and replay know the model by it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_manifest import done_again, make_recipe

from llmxai import Decoding, UserError, explain, load, save
from llmxai.errors import ModelLoadError
from llmxai.evidence.log import read_log
from llmxai.models import LoadedModel, finding, identity
from llmxai.recompute import recompute
from llmxai.runs import run_recipe
from llmxai.settings import IntegratedGradients, Settings

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
HOW = Settings(gradients=IntegratedGradients(max_nodes=8), removal=None)
TEMPLATE = "{% for message in messages %}{{ message.content }}!{% endfor %}"


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


@pytest.fixture(scope="module")
def lora(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig, get_peft_model

    place = tmp_path_factory.mktemp("adapters") / "lora"
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        get_peft_model(load(model_folder).model, config).save_pretrained(place)
    return place


@pytest.fixture
def adapter(lora: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(lora, tmp_path / "lora"))


def double(weights: Path) -> None:
    """Other weights of the same names, shapes and size."""
    save_file({name: value * 2 for name, value in load_file(weights).items()}, weights, metadata={"format": "pt"})


def in_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")


CHANGES: dict[str, Callable[[Path], object]] = {
    "weights": lambda folder: double(folder / "model.safetensors"),
    "configuration": lambda folder: in_json(folder / "config.json", rms_norm_eps=0.1),
    "generation settings": lambda folder: in_json(folder / "generation_config.json", eos_token_id=5),
    "special tokens": lambda folder: in_json(folder / "tokenizer_config.json", bos_token="a"),
    "chat template": lambda folder: (folder / "chat_template.jinja").write_text(TEMPLATE),
}


@pytest.mark.parametrize("what", CHANGES)
def test_every_part_is_part_of_it(folder: Path, what: str) -> None:
    before = load(folder).identity
    CHANGES[what](folder)
    after = load(folder).identity
    assert after.digest != before.digest
    parts = [name for name in before.__dataclass_fields__ if getattr(before, name) != getattr(after, name)]
    assert parts


def test_the_tokenizer_is_part_of_it(folder: Path) -> None:
    before = load(folder).identity
    document = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"]
    one, two = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (folder / "tokenizer.json").write_text(json.dumps(document))
    assert load(folder).identity.digest != before.digest


def test_an_adapter_is_part_of_it_file_by_file(model_folder: Path, adapter: Path) -> None:
    plain, adapted = load(model_folder).identity, load(model_folder, adapter=adapter).identity
    assert plain.digest != adapted.digest
    assert [file["path"] for file in adapted.files] == [
        *("model.safetensors", "adapter/adapter_config.json", "adapter/adapter_model.safetensors")
    ]
    double(adapter / "adapter_model.safetensors")
    other = load(model_folder, adapter=adapter).identity
    assert other.digest != adapted.digest
    in_json(adapter / "adapter_config.json", lora_alpha=64)
    assert load(model_folder, adapter=adapter).identity.digest != other.digest


def test_an_adapter_that_lies_in_the_models_folder_is_part_of_it(folder: Path, lora: Path) -> None:
    """transformers loads it without being asked."""
    before = load(folder)
    for path in lora.iterdir():
        shutil.copy(path, folder)
    after = load(folder)
    prompt = torch.tensor([[5, 6, 7]])
    assert not torch.equal(before.model(prompt).logits, after.model(prompt).logits)
    assert before.identity.digest != after.identity.digest
    assert before.identity.weights != after.identity.weights


def test_dtype_and_quantisation_are_part_of_it_and_the_place_is_not(folder: Path, tmp_path: Path) -> None:
    loaded = load(folder)
    assert load(folder, dtype="bfloat16").identity.digest != loaded.identity.digest
    elsewhere = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert load(elsewhere).identity.digest == loaded.identity.digest
    assert load(folder).identity == loaded.identity


def test_it_is_computed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[LoadedModel] = []
    real = identity.identify
    monkeypatch.setattr("llmxai.models.loading.identify", lambda loaded: calls.append(loaded) or real(loaded))
    loaded = load(folder)
    for _ in range(3):
        explain(loaded, "Hello", decoding=Decoding(max_new_tokens=1), settings=HOW)
    assert calls == [loaded]


def test_files_that_changed_after_they_were_loaded_have_no_identity(folder: Path) -> None:
    loaded = load(folder)
    double(folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match="changed after they were loaded"):
        explain(loaded, "Hello", decoding=Decoding(max_new_tokens=1), settings=HOW)


def test_the_record_says_it(model_folder: Path, adapter: Path, tmp_path: Path) -> None:
    loaded = load(model_folder, adapter=adapter)
    explanation = explain(loaded, "Hello", decoding=Decoding(max_new_tokens=1), settings=HOW)
    save(explanation, tmp_path / "run")
    ((_, record),) = read_log(tmp_path / "run")
    model = json.loads(record)["model"]
    assert model["identity"] == loaded.identity.digest == explanation.environment["model"]["identity"]
    assert [file["path"] for file in model["weight_files"]] == [file["path"] for file in loaded.identity.files]
    assert model["remote_code"] is False
    assert len(model["config_digest"]) == len(model["generation_config_digest"]) == 64


# the ledger


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("data")
    (place / "cities.jsonl").write_text('{"name": "Ada", "city": "Rome"}\n{"name": "Bo", "city": "Oslo"}\n')
    return place


def figures(run: Path) -> list[float]:
    rows = pq.read_table(run / "rows.parquet").to_pylist()
    return [row[name] for row in rows for name in ("target_f", "worst_gap_ratio")]


@pytest.mark.parametrize("what", ["adapter", "tokenizer", "chat template", "generation settings"])
def test_the_same_command_does_every_row_again_when_the_model_is_another(
    folder: Path, adapter: Path, data: Path, tmp_path: Path, what: str
) -> None:
    """And what it gives is what a fresh run gives."""
    model = {"name": str(folder), "dtype": "float32", "adapter": str(adapter)}
    recipe = make_recipe(folder, model=model)
    run_recipe(recipe, tmp_path / "run", root=data)
    assert done_again(tmp_path / "run", folder, data, model=model) == []
    before, ids = figures(tmp_path / "run"), [entry.id for entry, _ in read_log(tmp_path / "run")]
    if what == "adapter":
        double(adapter / "adapter_model.safetensors")
    elif what == "tokenizer":
        in_json(folder / "tokenizer_config.json", bos_token="a")
    else:
        CHANGES[what](folder)
    assert len(done_again(tmp_path / "run", folder, data, model=model)) == 2
    run_recipe(recipe, tmp_path / "fresh", root=data)
    assert figures(tmp_path / "run") == pytest.approx(figures(tmp_path / "fresh"))
    assert (figures(tmp_path / "run") != before) == (what == "adapter")
    again = [entry.id for entry, _ in read_log(tmp_path / "run")][len(ids) :]
    assert again == [entry.id for entry, _ in read_log(tmp_path / "fresh")]
    assert not set(again) & set(ids)


# replay


def test_a_replay_says_what_of_the_model_is_another(folder: Path, adapter: Path, tmp_path: Path) -> None:
    loaded = load(folder, adapter=adapter, dtype="float32")
    save(explain(loaded, "Hello", response=" Rome", settings=HOW), tmp_path / "run")
    (id,) = [entry.id for entry, _ in read_log(tmp_path / "run")]
    same = recompute(tmp_path / "run", id)
    assert (same.outcome, same.differences) == ("within", ())
    double(adapter / "adapter_model.safetensors")
    CHANGES["chat template"](folder)
    other = recompute(tmp_path / "run", id)
    assert other.outcome == "outside"
    assert [told.partition(":")[0] for told in other.differences] == ["chat template digest", "weight files"]


# the cache of dequantised models


@pytest.fixture
def gguf(tmp_path: Path, tiny_llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Path:
    def dequantise(_gguf: Path, folder: Path) -> None:
        made.append(folder)
        tiny_llama.model.save_pretrained(folder)
        tiny_llama.tokenizer.save_pretrained(folder)

    made.clear()
    monkeypatch.setattr(finding, "_dequantise", dequantise)
    monkeypatch.setenv("LLMXAI_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    return tmp_path / "model.gguf"


made: list[Path] = []


def cached(gguf: Path) -> Path:
    (folder,) = (gguf.parent / "cache" / "gguf").iterdir()
    return folder


def zero(folder: Path) -> None:
    weights = folder / "model.safetensors"
    save_file({name: value * 0 for name, value in load_file(weights).items()}, weights, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "spoil",
    [
        zero,
        lambda folder: in_json(folder / "config.json", rms_norm_eps=0.1),
        lambda folder: (folder / "chat_template.jinja").write_text(TEMPLATE),
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / "contents.json").unlink(),
        lambda folder: (folder / "contents.json").write_text("{}"),
    ],
    ids=["zeroed weights", "configuration", "template", "an adapter put in", "a file removed", "no list", "empty list"],
)
def test_a_cache_that_was_changed_is_made_again(gguf: Path, spoil: Callable[[Path], object]) -> None:
    first = load(gguf)
    assert len(made) == 1
    assert load(gguf).identity == first.identity
    assert len(made) == 1
    spoil(cached(gguf))
    again = load(gguf)
    assert len(made) == 2
    assert again.identity == first.identity
    prompt = torch.tensor([[5, 6, 7]])
    assert torch.equal(first.model(prompt).logits, again.model(prompt).logits)
    assert [path.name for path in (gguf.parent / "cache" / "gguf").iterdir()] == [cached(gguf).name]


def test_weights_that_were_zeroed_with_their_list_are_another_model(gguf: Path) -> None:
    """Whoever can write the cache can write the list, too: what is recorded is what was loaded."""
    first = load(gguf)
    assert first.identity.files
    zero(cached(gguf))
    finding._digest.cache_clear()
    in_json(
        cached(gguf) / "contents.json", **{"model.safetensors": finding.file_digest(cached(gguf) / "model.safetensors")}
    )
    again = load(gguf)
    assert len(made) == 1
    assert again.identity.files != first.identity.files
    assert again.identity.digest != first.identity.digest


# code in a model's folder


@pytest.fixture
def with_code(folder: Path, tmp_path: Path) -> Path:
    """Code for the configuration, the model and the tokenizer, each of which leaves a file behind when it is run."""
    code = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).write_text('')\n"
    (folder / "evil.py").write_text(
        f"{code}from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class EvilConfig(LlamaConfig):\n    model_type = 'evil'\n"
        "class EvilModel(LlamaForCausalLM):\n    config_class = EvilConfig\n"
        "class EvilTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    return folder


AUTO = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
KINDS: dict[str, dict[str, Any]] = {
    "a configuration of its own": {"model_type": "evil", "auto_map": AUTO},
    "a model of its own": {"auto_map": {"AutoModelForCausalLM": "evil.EvilModel"}},
    "both, of a known type": {"auto_map": AUTO},
}


@pytest.mark.parametrize("kind", [*KINDS, "a tokenizer of its own"])
def test_no_code_of_a_models_folder_runs(
    with_code: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    if kind == "a tokenizer of its own":
        auto = {"auto_map": {"AutoTokenizer": [None, "evil.EvilTokenizer"]}, "tokenizer_class": "EvilTokenizer"}
        in_json(with_code / "tokenizer_config.json", **auto)
    else:
        in_json(with_code / "config.json", **KINDS[kind])
    with suppress(UserError):
        load(with_code)
    assert not (tmp_path / "ran").exists()


def test_code_runs_when_it_is_told_to_and_the_record_says_so(with_code: Path, tmp_path: Path) -> None:
    in_json(with_code / "config.json", **KINDS["a configuration of its own"])
    with pytest.raises(UserError, match="--trust-remote-code"):
        load(with_code)
    loaded = load(with_code, trust_remote_code=True)
    assert (tmp_path / "ran").exists()
    save(explain(loaded, "Hello", response=" Rome", settings=HOW), tmp_path / "run")
    ((entry, record),) = read_log(tmp_path / "run")
    model = json.loads(record)["model"]
    assert model["remote_code"] is True
    assert "evil.py" in [file["path"] for file in model["weight_files"]]
    with pytest.raises(UserError, match="--trust-remote-code"):
        recompute(tmp_path / "run", entry.id)
    assert recompute(tmp_path / "run", entry.id, trust_remote_code=True).outcome == "within"
    (with_code / "evil.py").write_text((with_code / "evil.py").read_text() + "\n# another\n")
    assert load(with_code, trust_remote_code=True).identity.digest != loaded.identity.digest


class Pickled:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin"])
def test_no_pickle_runs(folder: Path, adapter: Path, tmp_path: Path, name: str) -> None:
    place, weights = (folder, "model") if name.startswith("pytorch") else (adapter, "adapter_model")
    (place / f"{weights}.safetensors").unlink()
    torch.save({"x": Pickled(tmp_path / "ran")}, place / name)
    with pytest.raises(UserError):
        load(folder, adapter=adapter)
    assert not (tmp_path / "ran").exists()
