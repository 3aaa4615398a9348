"""What a GPU does with llmxai: precision, agreement with the CPU, and the stages of an explanation. Prints Markdown.

    python benchmarks/gpu.py precision agree stages

precision: the embedded model stored in several dtypes, on the bench prompts; does every target converge, and with how
many nodes compared with float32? agree: tiny random models of every architecture, CPU against GPU. stages: seconds of
every stage of an explanation on a random Llama of about 1B parameters in bfloat16.
"""

from __future__ import annotations

import gc
import json
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

from llmxai import LoadedModel, Settings, explain, layer_integrated_gradients, load, wrap  # noqa: E402
from llmxai.explanation import Explanation  # noqa: E402
from llmxai.generation import answer, replay  # noqa: E402
from llmxai.methods import METHODS  # noqa: E402
from llmxai.models.precision import full_precision  # noqa: E402
from llmxai.settings import Decoding  # noqa: E402
from llmxai.types import Generation  # noqa: E402

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


def random_llama(dtype: torch.dtype) -> LoadedModel:
    """About 1B parameters, random weights, the tiny tests' tokenizer."""
    from tiny import make_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    small = not CUDA
    config = LlamaConfig(
        vocab_size=128256 if not small else 1000,
        hidden_size=2048 if not small else 64,
        intermediate_size=8192 if not small else 128,
        num_hidden_layers=16 if not small else 2,
        num_attention_heads=32 if not small else 4,
        num_key_value_heads=8 if not small else 2,
        max_position_embeddings=65536,
        eos_token_id=None,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if CUDA else "cpu"):
        model = LlamaForCausalLM(config).to(dtype).eval()
    return wrap(model, make_tokenizer(), name="random 1B")


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


def stages(prompt: int = 512, tokens: int = 16) -> None:
    """An explanation of a long prompt by stage, after a warm-up."""
    print(f"\n## Stages: random 1B Llama in bfloat16, {prompt} + {tokens} tokens\n", flush=True)
    loaded = random_llama(torch.bfloat16)
    text = "The capital of France is Paris, and the capital of Italy is Rome. " * 60
    explain(loaded, text[:200], max_new_tokens=2)
    ids = loaded.tokenizer(text)["input_ids"][:prompt]
    with clock() as (progress, seconds):
        found = explain(loaded, ids, max_new_tokens=tokens, progress=progress)
    row("stage", "seconds")
    row("---", "---")
    for stage, took in seconds.items():
        row(stage if len(stage) < 60 else f"{stage[:57]}...", took)
    row("all", sum(seconds.values()))
    for name in ("layer_integrated_gradients", "deletion_path"):
        one = certificate(found, name)
        print(f"\n{name}: {sum(one.converged)} of {len(found)} converged, {sum(one.nodes)} nodes", flush=True)
    if CUDA:
        print(f"\npeak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB", flush=True)
    with full_precision(loaded) as exact:
        f = torch.tensor(replay(exact, found.generation).f, dtype=torch.float64)
        start = now()
        layer_integrated_gradients(exact, found.generation, n_steps=8, f_input=f)
        print(f"\n8 nodes of integrated gradients for {tokens} targets in float32: {now() - start:.2f} s", flush=True)


PARTS = {"precision": precision, "agree": agree, "stages": stages}


def main() -> None:
    machine()
    for name in sys.argv[1:] or PARTS:
        try:
            PARTS[name]()
        except Exception:
            traceback.print_exc()


if __name__ == "__main__":
    main()
