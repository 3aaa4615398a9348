"""What a GPU does with llmxai: precision, agreement with the CPU, and the stages of an explanation. Prints Markdown.

    python benchmarks/gpu.py precision agree stages speed versus rollout gradients

precision: the embedded model stored in several dtypes, on the bench prompts; does every target converge, and with how
many nodes compared with float32? agree: tiny random models of every architecture, CPU against GPU. stages: seconds of
every stage of an explanation on a random Llama of about 1B parameters in bfloat16. speed: integrated gradients of fixed
nodes on random Llamas of 1B and 8B parameters, by precision, uncompiled and compiled, with the share of the rate of
large products. versus: the same nodes by Captum. rollout: long prompts. gradients: the embedded model with gradients in
several dtypes, to the certificate.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from llmxai import LoadedModel, Settings, explain, layer_integrated_gradients, load, wrap  # noqa: E402
from llmxai.explanation import Explanation  # noqa: E402
from llmxai.generation import answer  # noqa: E402
from llmxai.methods import METHODS  # noqa: E402
from llmxai.models import compiled  # noqa: E402
from llmxai.models.precision import full_precision, tf32_products  # noqa: E402
from llmxai.models.speed import layer_operations, product_rate  # noqa: E402
from llmxai.settings import Compute, Decoding  # noqa: E402
from llmxai.types import Generation, Role  # noqa: E402

PROMPTS = json.loads((HERE / "prompts.json").read_text(encoding="utf-8"))
CUDA = torch.cuda.is_available()
DTYPES: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
    "4-bit, bfloat16 products": {"dtype": "bfloat16", "quantize": "4bit"},
    "8-bit": {"dtype": "float16", "quantize": "8bit"},
}


def row(*cells: object) -> None:
    """One row of a Markdown table, at once."""
    print("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |", flush=True)


def now() -> float:
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def machine() -> None:
    card = torch.cuda.get_device_name(0) if CUDA else "no GPU"
    print(f"{card}, torch {torch.__version__}, {torch.get_num_threads()} threads\n", flush=True)


def precision(n_prompts: int = 8, tokens: int = 8) -> None:
    """Integrated gradients and the deletion path on the same answers (those of float32), in every dtype."""
    print("\n## Precision: the embedded model, as it is stored\n", flush=True)
    row("stored in", "targets", "IG converged", "IG nodes / float32's", "deletion path converged", "verdicts")
    row(*["---"] * 6)
    answers: list[Generation] = []
    nodes_before = 0
    for name, options in DTYPES.items():
        try:
            loaded = load("smollm2", **options)
            print(f"{name}: loaded", file=sys.stderr, flush=True)
            if not answers:
                decoding = Decoding(max_new_tokens=tokens)
                answers = [answer(loaded, p["messages"], decoding=decoding) for p in PROMPTS[:n_prompts]]
                answers = [replace(one, logprobs=None) for one in answers]
            found = [explain(loaded, one, settings=Settings()) for one in answers]
        except Exception as error:
            row(name, "failed", f"{type(error).__name__}: {str(error)[:150]}", "", "", "")
            traceback.print_exc()
            continue
        nodes = sum(sum(certificate(e, "layer_integrated_gradients").nodes) for e in found)
        nodes_before = nodes_before or nodes
        verdicts = Counter(str(check.status) for e in found for check in e.checks)
        row(
            name,
            sum(len(e) for e in found),
            sum(sum(certificate(e, "layer_integrated_gradients").converged) for e in found),
            nodes / nodes_before,
            sum(sum(certificate(e, "deletion_path").converged) for e in found),
            ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())),
        )
        del loaded, found
        gc.collect()


def certificate(explanation: Explanation, method: str) -> Any:
    return explanation.scores[method].certificate


def agree() -> None:
    """Largest relative difference of every method's values between CPU and GPU, over all architectures."""
    from tiny import ARCHITECTURES, answered, make_loaded

    print("\n## CPU against GPU: tiny random models, float32\n", flush=True)
    row("architecture", "IG", "deletion path", "rollout", "gradient-weighted rollout", "leave-one-out")
    row(*["---"] * 6)
    names = (
        *("layer_integrated_gradients", "deletion_path", "attention_rollout"),
        *("gradient_weighted_rollout", "leave_one_out"),
    )
    for architecture in ARCHITECTURES:
        cells: list[object] = [architecture]
        cpu = make_loaded(architecture, initializer_range=0.1)
        generation = answered(cpu)
        gpu = replace(cpu, model=make_loaded(architecture, initializer_range=0.1).model.to("cuda" if CUDA else "cpu"))
        for name in names:
            options: dict[str, Any] = {"n_steps": 4} if "n_steps" in METHODS[name].options else {}
            try:
                want = METHODS[name].function(cpu, generation, **options).values
                got = METHODS[name].function(gpu, generation, **options).values
                cells.append(float((got - want).abs().max() / want.abs().max()))
            except Exception as error:
                cells.append(type(error).__name__)
        row(*cells)


SIZES = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 8}
"""Instead of either, to try this out on a CPU."""


def random_llama(dtype: torch.dtype, size: str = "1B", *, full: bool = CUDA) -> LoadedModel:
    """Random weights, the tiny tests' tokenizer; a small one in its place unless `full`."""
    from tiny import make_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256 if full else 1000,
        **(SIZES[size] if full else SMALL),
        num_key_value_heads=8,
        max_position_embeddings=65536,
        eos_token_id=None,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("cuda" if CUDA else "cpu"):
            model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    return wrap(model, make_tokenizer(), name=f"random {size}")


def random_answer(prompt: int, tokens: int) -> Generation:
    """Random ids, as if they were an answer; every token of the prompt is content."""
    ids = torch.randint(20, 390, (prompt + tokens,), generator=torch.Generator().manual_seed(1)).tolist()
    roles = (Role.USER,) * prompt + (Role.GENERATED,) * tokens
    return Generation(
        ids=tuple(ids),
        prompt_len=prompt,
        roles=roles,
        texts=("x",) * len(ids),
        words=(),
        logprobs=None,
        stop="given",
        request={},
    )


@contextmanager
def clock() -> Iterator[tuple[Callable[[str, int, int], None], dict[str, float]]]:
    """Seconds per stage, by what progress says."""
    seconds: dict[str, float] = {}
    last: list[Any] = [None, now()]

    def progress(stage: str, _done: int, _total: int) -> None:
        if stage != last[0]:
            if last[0] is not None:
                seconds[last[0]] = seconds.get(last[0], 0.0) + now() - last[1]
            last[:] = [stage, now()]

    yield progress, seconds
    progress("end", 0, 1)


def stages(prompt: int = 512, tokens: int = 64) -> None:
    """An explanation of a long prompt by stage, after a warm-up, twice."""
    print(f"\n## Stages: random 1B Llama in bfloat16, {prompt} + {tokens} tokens\n", flush=True)
    loaded = random_llama(torch.bfloat16)
    prompt, tokens = (prompt, tokens) if CUDA else (40, 4)
    ids = list(random_answer(prompt, 1).ids[:prompt])
    explain(loaded, ids[:64], max_new_tokens=2)
    row("run", "stage", "s")
    row(*["---"] * 3)
    for what, compute in (("first", Compute()), ("second", Compute()), ("float16", Compute(gradient_dtype="float16"))):
        with clock() as (progress, seconds):
            found = explain(loaded, ids, max_new_tokens=tokens, settings=Settings(compute=compute), progress=progress)
        for stage, took in seconds.items():
            row(what, stage if len(stage) < 60 else f"{stage[:57]}...", took)
        row(what, "all", sum(seconds.values()))
    for name in ("layer_integrated_gradients", "deletion_path"):
        one = certificate(found, name)
        print(f"\n{name}: {sum(one.converged)} of {len(found)} converged, {sum(one.nodes)} nodes", flush=True)
    if CUDA:
        print(f"\npeak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB", flush=True)


@contextmanager
def compiling(wanted: bool) -> Iterator[None]:
    """Inside, every shape is compiled at once, or none is."""
    before = compiled.COMPILATION
    compiled.COMPILATION = dict.fromkeys(before, 0.0 if wanted else math.inf)
    try:
        yield
    finally:
        compiled.COMPILATION = before


def extra_memory(before: int) -> float:
    return (torch.cuda.max_memory_allocated() - before) / 2**30 if CUDA else 0.0


def fixed_nodes(loaded: LoadedModel, what: str, *, targets: int, n_steps: int, **options: Any) -> None:
    """Integrated gradients of fixed nodes with default settings: a row of speed, the second of two runs."""
    prompt = 512 if CUDA else 40
    generation = random_answer(prompt, targets)
    device, pairs = loaded.model.device, targets * n_steps
    one = layer_operations(loaded.model, tokens=prompt + targets)
    for compile_layers in (False, True):
        seconds = []
        with compiling(compile_layers):
            for _ in range(2):
                gc.collect()
                if CUDA:
                    torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated() if CUDA else 0
                start = now()
                found = layer_integrated_gradients(loaded, generation, n_steps=n_steps, **options)
                seconds.append(now() - start)
        rates = {d: product_rate(device, d) for d in (torch.float32, torch.bfloat16)}
        done = (pairs + n_steps) * one / seconds[1]
        row(
            what,
            "compiled" if compile_layers else "uncompiled",
            found.settings["chunk_tokens"],
            seconds[0],
            seconds[1],
            pairs / seconds[1],
            done / 1e12,
            done / rates[torch.bfloat16],
            extra_memory(before),
        )


def speed() -> None:
    """Pairs (node, target) a second; the first run of each row includes compilation, the second is counted."""
    print("\n## Integrated gradients of fixed nodes, 512 + 16 tokens, default settings\n", flush=True)
    with tf32_products():
        tf32 = product_rate(torch.device("cuda" if CUDA else "cpu"), torch.float32)
    rates = [product_rate(torch.device("cuda" if CUDA else "cpu"), d) for d in (torch.float32, torch.bfloat16)]
    print(f"Products, TFLOP/s: fp32 {rates[0] / 1e12:.1f}, TF32 {tf32 / 1e12:.1f}, bf16 {rates[1] / 1e12:.1f}\n")
    row("model", "layers", "chunk", "first s", "s", "pairs/s", "TFLOP/s", "of bf16's rate", "extra GiB")
    row(*["---"] * 9)
    for size, n_steps in (("1B", 48), ("8B", 16)):
        loaded = random_llama(torch.bfloat16, size)
        fixed_nodes(loaded, f"{size} bf16, as stored", targets=16, n_steps=n_steps)
        with full_precision(loaded) as exact:
            fixed_nodes(exact, f"{size} bf16, in float32 with TF32 gradients", targets=16, n_steps=n_steps)
        del loaded, exact
        gc.collect()
        if CUDA:
            torch.cuda.empty_cache()


def versus(prompt: int = 128, targets: int = 8, n_steps: int = 50) -> None:
    """Captum's layer-integrated gradients: the same nodes, baseline and features; second of two runs."""
    from captum.attr import LayerIntegratedGradients

    print(f"\n## Captum, 1B, {prompt} + {targets} tokens, {n_steps} nodes, all prompt tokens from id 0\n", flush=True)
    row("model", "work", "first s", "s", "times Captum")
    row(*["---"] * 5)
    generation = random_answer(prompt, targets)
    ids = torch.tensor([generation.ids], device="cuda" if CUDA else "cpu")

    def captum(model: Any) -> None:
        for t in range(targets):
            seen, token = ids[:, : prompt + t], generation.generated_ids[t]
            zeros = torch.cat([torch.zeros_like(seen[:, :prompt]), seen[:, prompt:]], dim=1)
            method = LayerIntegratedGradients(
                lambda x: model(x, use_cache=False).logits[:, -1].log_softmax(-1), model.get_input_embeddings()
            )
            method.attribute(seen, baselines=zeros, target=token, n_steps=n_steps)

    for dtype in (torch.bfloat16, torch.float32):
        loaded = random_llama(dtype)
        name = str(dtype).removeprefix("torch.")

        def ours(exact: LoadedModel, **compute: Any) -> None:
            options: dict[str, Any] = {"features": "prompt", "baseline": "id:0", "n_steps": n_steps}
            layer_integrated_gradients(exact, generation, compute=Compute(**compute), **options)

        with full_precision(loaded) as exact:
            works = {"Captum": lambda loaded=loaded: captum(loaded.model)}
            works["llmxai, as stored"] = lambda loaded=loaded: ours(loaded)
            if dtype is torch.bfloat16:
                works["llmxai, default (in float32, TF32 gradients)"] = lambda exact=exact: ours(exact)
            for gradient in ("bfloat16", "float16"):
                works[f"llmxai, in float32, gradients in {gradient}"] = lambda exact=exact, gradient=gradient: ours(
                    exact, gradient_dtype=gradient
                )
            seconds: dict[str, float] = {}
            for what, work in works.items():
                took = []
                for _ in range(2):
                    start = now()
                    work()
                    took.append(now() - start)
                seconds[what] = took[1]
                row(name, what, took[0], took[1], seconds["Captum"] / took[1])
        del loaded, exact, works
        gc.collect()


def rollout() -> None:
    """Rollout and its gradient-weighted variant at length, 8 targets."""
    print("\n## Rollout, 1B in bfloat16, 8 targets\n", flush=True)
    row("method", "tokens", "computed in", "s", "extra GiB", "least sum")
    row(*["---"] * 6)
    loaded = random_llama(torch.bfloat16)
    long = [(2048, 8192, 32768), (2048,)] if CUDA else [(64,), (64,)]
    with full_precision(loaded) as exact:
        for name, lengths in zip(("attention_rollout", "gradient_weighted_rollout"), long, strict=True):
            for tokens in lengths:
                for what, model in (("bfloat16", loaded), ("float32", exact)):
                    gc.collect()
                    if CUDA:
                        torch.cuda.empty_cache()
                        torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated() if CUDA else 0
                    start = now()
                    found = METHODS[name].function(model, random_answer(tokens - 8, 8))
                    took = now() - start
                    row(name, tokens, what, took, extra_memory(before), float(found.values.sum(dim=1).min()))


def gradients(n_prompts: int = 3, tokens: int = 8) -> None:
    """The embedded model in float32, gradients in other dtypes, to the certificate; second of two runs."""
    print("\n## Gradients of the embedded model to the certificate\n", flush=True)
    row("gradients", "targets", "converged", "nodes", "panels again", "s", "least cosine to float32")
    row(*["---"] * 7)
    loaded = load("smollm2", dtype="float32")
    answers = [answer(loaded, p["messages"], decoding=Decoding(max_new_tokens=tokens)) for p in PROMPTS[:n_prompts]]
    base: list[torch.Tensor] = []
    for name, dtype, products in (
        ("float32", None, nullcontext),
        ("TF32", None, tf32_products),
        ("bfloat16", "bfloat16", nullcontext),
        ("float16", "float16", nullcontext),
    ):
        with products():
            for _ in range(2):
                start = now()
                found = [
                    layer_integrated_gradients(loaded, one, compute=Compute(gradient_dtype=dtype)) for one in answers
                ]
                took = now() - start
        values = [scores.values for scores in found]
        base = base or values
        cosine = min(
            float(torch.nn.functional.cosine_similarity(a, b, dim=1).min()) for a, b in zip(values, base, strict=True)
        )
        certificates: list[Any] = [scores.certificate for scores in found]
        row(
            name,
            sum(len(one) for one in values),
            sum(sum(c.converged) for c in certificates),
            sum(sum(c.nodes) for c in certificates),
            sum(int(str(scores.settings["panels_computed_again_in_dtype"])) for scores in found),
            took,
            cosine,
        )


PARTS = {
    "precision": precision,
    "agree": agree,
    "stages": stages,
    "speed": speed,
    "versus": versus,
    "rollout": rollout,
    "gradients": gradients,
}


def main() -> None:
    machine()
    for name in sys.argv[1:] or PARTS:
        try:
            PARTS[name]()
        except Exception:
            traceback.print_exc()


if __name__ == "__main__":
    main()
