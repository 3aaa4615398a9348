"""Layers on disk: the same numbers as in memory, no more of the weights alive than a block, nothing moved."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny import answered, certificate_of, make_model, make_tokenizer
from torch import nn

from llmxai import explain
from llmxai.methods import attention_rollout, deletion_path, layer_integrated_gradients
from llmxai.models import LoadedModel, load
from llmxai.models.embedding import devices_of
from llmxai.models.memory import plan_for
from llmxai.models.precision import full_precision
from llmxai.settings import Compute, IntegratedGradients, Settings
from llmxai.types import Scores

LAYERS = 12
MIB = 2**20


@pytest.fixture(scope="module")
def heavy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """192 MiB of weights in layers, 16 MiB each."""
    folder = tmp_path_factory.mktemp("models") / "heavy"
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": LAYERS, "initializer_range": 0.02}
    make_model("llama", **sizes, num_attention_heads=8, num_key_value_heads=8).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def on_disk(layers: int) -> dict[str, str]:
    parts = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    return {**dict.fromkeys(parts, "cpu"), **{f"model.layers.{i}": "disk" for i in range(layers)}}


@contextmanager
def peak_of_resident_memory() -> Iterator[Callable[[], int]]:
    """Bytes by which the process grows inside, files that it maps included; looked at every 2 ms."""
    before, most, done = resident(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            most[0] = max(most[0], resident() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: most[0]
    finally:
        done.set()
        watcher.join()


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def test_peak_memory_stays_near_one_block(heavy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded, whole = load(heavy_folder, device_map=on_disk(LAYERS)), load(heavy_folder)
    generation = answered(loaded)
    weights = sum(p.numel() * p.element_size() for p in whole.model.model.layers.parameters())
    assert weights == pytest.approx(LAYERS * 16 * MIB, rel=0.01)
    want = layer_integrated_gradients(whole, generation, n_steps=2)
    peaks = {}
    for checkpoint in (True, False):
        with peak_of_resident_memory() as peak:
            got = layer_integrated_gradients(loaded, generation, n_steps=2, compute=Compute(checkpoint=checkpoint))
        peaks[checkpoint] = peak()
        assert (got.values - want.values).abs().max() < 1e-4 * want.values.abs().max()
        assert all(p.device.type == "meta" for p in loaded.model.model.layers.parameters()), "a weight was left behind"
    assert peaks[True] < 3 * 16 * MIB, f"{peaks[True] / MIB:.0f} MiB"
    assert peaks[False] > 0.6 * weights, "without checkpointing the graph is known to keep the weights alive"
    rollouts = [attention_rollout(m, generation).values for m in (loaded, whole)]
    assert (rollouts[0] - rollouts[1]).abs().max() < 1e-6


def test_the_plan_of_an_offloaded_model_is_to_checkpoint(
    model_folder: Path, tiny_llama: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load(model_folder, device_map=on_disk(3))
    plan, in_memory = (plan_for(m.model, tokens=20, targets=2) for m in (loaded, tiny_llama))
    assert plan.checkpoint
    assert not in_memory.checkpoint
    layer = sum(p.numel() * p.element_size() for p in tiny_llama.model.model.layers[0].parameters())
    assert (plan.weights, in_memory.weights) == (layer, 0)  # of the offloaded layers, one is in memory at a time
    chat = [{"role": "user", "content": "The capital of France"}]
    settings = Settings(gradients=IntegratedGradients(max_nodes=32))
    got, want = (explain(m, chat, response=" Paris", settings=settings) for m in (loaded, tiny_llama))
    assert got.computed["checkpoint"] is True
    assert (got.gradients.values - want.gradients.values).abs().max() < 1e-4
    assert (got.rollout.values - want.rollout.values).abs().max() < 1e-6


PARTS = ("model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head")
AWAY: dict[str, dict[str, str]] = {
    "all on disk": {"": "disk"},
    "the embedding on disk": {**dict.fromkeys(PARTS, "cpu"), "model.embed_tokens": "disk"},
    "embedding and head on disk": {**dict.fromkeys(PARTS, "cpu"), "model.embed_tokens": "disk", "lm_head": "disk"},
}


@pytest.mark.parametrize("device_map", AWAY.values(), ids=AWAY)
def test_an_embedding_that_is_not_in_memory(
    model_folder: Path,
    tiny_llama: LoadedModel,
    device_map: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ids go where the embedding runs; the model's own device is `meta` there."""
    monkeypatch.chdir(tmp_path)
    loaded = load(model_folder, device_map=device_map)
    assert loaded.model.device.type == "meta"
    settings = Settings(gradients=IntegratedGradients(max_nodes=8), also=("smoothgrad", "lime"))
    got, want = (explain(m, "The capital of", response=" Paris", settings=settings) for m in (loaded, tiny_llama))
    assert set(got.scores) == set(want.scores)
    for name, scores in want.scores.items():
        assert scores.refused is None
        assert (got.scores[name].values - scores.values).abs().max() < 1e-4 * scores.values.abs().max().clamp(min=1)
    assert got.environment["model"]["device"] == "cpu"


def forwards(loaded: LoadedModel) -> dict[str, list[object]]:
    """What was put in the place of the modules' own methods."""
    places = ("forward", "_old_forward")
    return {name: [m.__dict__.get(place) for place in places] for name, m in loaded.model.named_modules()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", [layer_integrated_gradients, deletion_path])
def test_gradients_in_16_bits_layer_by_layer(
    model_folder: Path, dtype: str, method: Callable[..., Scores], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F in float32 and gradients in bfloat16, from the same weights on disk: bit for bit those of whole copies."""
    monkeypatch.chdir(tmp_path)
    loaded, whole = load(model_folder, device_map=on_disk(3), dtype=dtype), load(model_folder, dtype=dtype)
    for each in (loaded, whole):
        each.model.set_attn_implementation("eager")  # as in a 16-bit copy on the CPU
    before, generation = forwards(loaded), answered(whole)
    found = []
    for each in (loaded, whole):
        with full_precision(each) as exact:
            for fast in ("bfloat16", None):
                compute = Compute(checkpoint=True, gradient_dtype=fast)
                found.append(method(exact, generation, n_steps=3, compute=compute))
    got, got_exact, want, want_exact = found
    assert torch.equal(got.values, want.values)
    assert torch.allclose(got_exact.values, want_exact.values, atol=1e-5 * float(want_exact.values.abs().max()))
    assert (got.values - got_exact.values).abs().max() > 1e-4 * got_exact.values.abs().max()
    assert torch.equal(certificate_of(got).f_baseline, certificate_of(got_exact).f_baseline)
    assert forwards(loaded) == before
    assert all(p.device.type == "meta" for p in loaded.model.model.layers.parameters()), "a weight was left behind"


def test_the_devices_of_a_model(tiny_llama: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate names a GPU by its number; what is on disk runs elsewhere."""
    cpu = torch.device("cpu")
    assert devices_of(tiny_llama.model) == [cpu]
    places = {"model": 0, "lm_head": "cuda:1", "other": "cpu", "more": "disk", "again": 0}
    monkeypatch.setattr(tiny_llama.model, "hf_device_map", places, raising=False)
    assert devices_of(tiny_llama.model) == [cpu, torch.device("cuda", 0), torch.device("cuda", 1)]


@pytest.mark.parametrize("device_map", ["balanced", "balanced_low_0", "sequential", "auto"])
def test_maps_that_accelerate_makes(model_folder: Path, tiny_llama: LoadedModel, device_map: str) -> None:
    loaded = load(model_folder, device_map=device_map)
    generation = answered(loaded)
    got, want = (layer_integrated_gradients(m, generation, n_steps=2).values for m in (loaded, tiny_llama))
    # relative: the values reach 10, and another order of sums in float32 moves them by more than 1e-5
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


def test_a_dispatched_model_is_never_moved(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate refuses `.to()` on it, or loses what it offloaded."""
    monkeypatch.chdir(tmp_path)
    loaded = load(model_folder, device_map=on_disk(3))
    before = {name: str(p.device) for name, p in loaded.model.named_parameters()}

    def moved(self: nn.Module, *_arguments: object, **_options: object) -> nn.Module:
        raise AssertionError(f"{type(self).__name__} was moved")

    monkeypatch.setattr(nn.Module, "to", moved)
    monkeypatch.setattr(nn.Module, "cuda", moved)
    monkeypatch.setattr(nn.Module, "cpu", moved)
    explain(loaded, "The capital", response=" Paris", settings=Settings(gradients=IntegratedGradients(max_nodes=8)))
    after = {name: str(p.device) for name, p in loaded.model.named_parameters()}
    assert before == after
    assert before["model.layers.1.mlp.up_proj.weight"] == "meta"
    assert torch.isfinite(loaded.model.model.norm.weight).all()
