"""`llmxai explain`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from gc import collect
from pathlib import Path
from typing import Annotated, Any

import typer

from llmxai.commands.console import progress, told_when_interrupted
from llmxai.commands.prompts import asked_from, context_from
from llmxai.errors import OptionError
from llmxai.names import CURRENT
from llmxai.settings import Decoding, Settings, assign, field_paths, put, settings_from
from llmxai.text import quoted, trimmed

TEXTS = ("prompt", "response", "foil", "template_args", "requester", "purpose", "key")
"""Options that the record does not store as settings: texts are kept apart from it and can be removed."""


FLAGS = {
    "features": "features",
    "baseline": "gradients.baseline",
    "tolerance": "gradients.tolerance.relative",
    "max_nodes": "gradients.max_nodes",
    "residual": "rollout.residual",
    "variant": "rollout.variant",
    "gradient_dtype": "compute.gradient_dtype",
    "chunk_tokens": "compute.chunk_tokens",
    "checkpoint": "compute.checkpoint",
    "removal_operator": "removal.operator",
    "removal_units": "removal.units",
}
"""The setting behind each option of the command; `--set` reaches the rest."""


MOST_WORDS = 12
"""Words of the answer that the summary lists."""


def _help(setting: str, text: str) -> str:
    return f"{text} Default: {field_paths()[setting]}."


def _renamed(*names: str, to: str) -> Any:
    """An option of earlier versions, which reports its new name."""

    def refuse(value: Any) -> None:
        if value is not None:
            raise OptionError(f"{'/'.join(names)} is now called {to}.")

    return typer.Option(*names, hidden=True, help=f"Now called {to}.", callback=refuse)


def explain(
    model: Annotated[
        str, typer.Option(help="smollm2 (embedded), a .gguf file, a local folder or a hub name.")
    ] = "smollm2",
    prompt: Annotated[str | None, typer.Option(help="Raw prompt text.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="Raw prompt from a UTF-8 file.")] = None,
    messages: Annotated[
        Path | None, typer.Option(help='JSON file of chat messages: [{"role": ..., "content": ...}].')
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Send the prompt as one user message through the chat template.")
    ] = False,
    response: Annotated[str | None, typer.Option(help="Explain this answer instead of a generated one.")] = None,
    documents: Annotated[
        Path | None,
        typer.Option(help="Documents: a .jsonl file of {title, text}, or a folder of text files named by title."),
    ] = None,
    documents_in: Annotated[
        str, typer.Option(help="Where documents stand: template, user (before the user's text), or auto.")
    ] = "auto",
    tools: Annotated[Path | None, typer.Option(help="JSON file of what the model may call: a list of schemas.")] = None,
    template_args: Annotated[
        list[str] | None,
        typer.Option("--template-arg", help="A variable of the chat template: enable_thinking=false. Repeatable."),
    ] = None,
    continue_final_message: Annotated[
        bool, typer.Option("--continue-final-message", help="The answer continues the assistant's last message.")
    ] = False,
    foil: Annotated[
        str | None,
        typer.Option(help="Another answer: explain why the model chose its own instead, where they first differ."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer to generate.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy; above 0 samples.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling, with a temperature.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample among so many tokens; 0: among all.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    features: Annotated[str | None, typer.Option(help=_help("features", "content, prompt or all."))] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help=_help("gradients.baseline", "space, zero, eos, pad, mask, mean, id:N, token:TEXT.")),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help=_help("gradients.tolerance.relative", "Allowed error, relative to the change in F.")),
    ] = None,
    max_nodes: Annotated[
        int | None, typer.Option(help=_help("gradients.max_nodes", "Gradient evaluations per target, at most."))
    ] = None,
    residual: Annotated[
        float | None, typer.Option(help=_help("rollout.residual", "Share of a layer that stays unmixed."))
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(help=_help("rollout.variant", "The second attention method; `llmxai methods` lists them.")),
    ] = None,
    also: Annotated[
        list[str] | None, typer.Option(help="Another method to compute and show; can be given several times.")
    ] = None,
    gradient_dtype: Annotated[
        str | None,
        typer.Option(
            help="Gradients on a copy of the weights in this dtype; errors are measured in the model's dtype."
        ),
    ] = None,
    chunk_tokens: Annotated[
        int | None, typer.Option(help="Tokens that go through the model at once. Default: what the memory allows.")
    ] = None,
    checkpoint: Annotated[
        bool | None,
        typer.Option(
            "--checkpoint/--no-checkpoint",
            help="Recompute activations in the backward pass: far less memory. Default: if needed.",
        ),
    ] = None,
    removal: Annotated[
        bool, typer.Option(help="Remove parts of the prompt to measure their effects and to check the methods.")
    ] = True,
    removal_operator: Annotated[
        str | None, typer.Option(help=_help("removal.operator", "How parts are removed: delete, baseline or mean."))
    ] = None,
    removal_units: Annotated[
        str | None, typer.Option(help=_help("removal.units", "What a part is: auto, token, word or sentence."))
    ] = None,
    referee: Annotated[bool | None, _renamed("--referee/--no-referee", to="--removal/--no-removal")] = None,
    ablation_operator: Annotated[str | None, _renamed("--ablation-operator", to="--removal-operator")] = None,
    ablation_units: Annotated[str | None, _renamed("--ablation-units", to="--removal-units")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting, such as rollout.head_fusion=max; --settings lists them."),
    ] = None,
    list_settings: Annotated[
        bool, typer.Option("--settings", help="List every setting with its default, and exit.")
    ] = False,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16, float64 or auto.")] = None,
    device_map: Annotated[
        str | None, typer.Option(help="Accelerate's: auto, balanced, cpu, cuda:0, or a JSON object.")
    ] = None,
    quantize: Annotated[str | None, typer.Option(help="4bit or 8bit (bitsandbytes).")] = None,
    compare_full: Annotated[
        bool,
        typer.Option(
            "--compare-full",
            help="With --quantize: also explain the same answer at full precision, and show what differs.",
        ),
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    adapter: Annotated[str | None, typer.Option(help="PEFT adapter: folder or hub name.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let Python code in the model's folder run; records say so.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("runs/explanation"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print explanation.json instead of the report's path.")
    ] = False,
    requester: Annotated[str | None, typer.Option(help="Who asks, as a pseudonym, for the record.")] = None,
    purpose: Annotated[str | None, typer.Option(help="Why; goes into the record.")] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Keep no text and no report, only a record with keyed digests.")
    ] = False,
    key: Annotated[
        Path | None, typer.Option(help="Signing key file (llmxai keys new); else LLMXAI_SIGNING_KEY[_FILE].")
    ] = None,
) -> None:
    """Explain every token of an answer and write report.html, explanation.json and maps.safetensors."""
    asked = {name: value for name, value in locals().items() if name not in TEXTS and value is not None}
    if list_settings:
        for name, value in field_paths().items():
            typer.echo(f"{name} = {json.dumps(value)}")
        return
    from llmxai.evidence import recording, secret_key, signing_key
    from llmxai.store import evidence_folder, require_replaceable

    with (
        told_when_interrupted("Interrupted; no explanation was written."),
        recording(evidence_folder(out), entry="cli", requester=requester, purpose=purpose) as attempt,
    ):
        attempt.options = asked
        attempt.signer = signing_key(key)
        attempt.private = secret_key() if private else None
        text, turns = asked_from(prompt, prompt_file, messages, chat=chat, continues=continue_final_message)
        given = context_from(
            documents=documents,
            documents_in=documents_in,
            tools=tools,
            template_args=template_args or (),
            continue_final_message=continue_final_message,
        )
        attempt.request = {"prompt": text, "messages": turns, "response": response, "foil": foil, **given}
        require_replaceable(out)
        chosen = _settings(asked, also or (), assignments or (), removal=removal)
        decoding = Decoding(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
        from transformers.utils.logging import disable_progress_bar

        from llmxai import compare_full as compare
        from llmxai import explain as run
        from llmxai import load, save
        from llmxai.explain import require_methods

        disable_progress_bar()
        require_methods(chosen)
        source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        read = partial(load, model, dtype=dtype, device_map=_device_map(device_map), adapter=adapter, **source)
        if compare_full:
            _require_comparison(model, dtype=dtype, device_map=device_map, quantize=quantize, source=source)
        with progress() as report:
            report("loading the model", 0, 1)
            explanation = run(
                read(quantize=quantize),
                turns if turns is not None else text or "",
                response=response,
                foil=foil,
                **given,
                decoding=decoding,
                settings=chosen,
                progress=report,
            )
            if compare_full:
                report("loading the model at full precision", 0, 1)
                collect()  # the quantised one is finished with: both need not fit at once
                explanation = compare(explanation, read(), progress=report)
            report("writing the record" if private else "writing the report", 0, 1)
            save(explanation, out, attempt=attempt)
    _tell(explanation, attempt, out, as_json=as_json)


def _require_comparison(
    model: str, *, dtype: str | None, device_map: str | None, quantize: str | None, source: Mapping[str, Any]
) -> None:
    """Refuse --compare-full before any work if it could not be completed."""
    from torch.cuda import is_available

    from llmxai.models.finding import find_model
    from llmxai.models.loading import require_memory, stored_dtype

    if quantize is None:
        raise OptionError(
            "--compare-full says what quantisation changed, and nothing is quantised. Add --quantize 4bit or 8bit."
        )
    if device_map == "cpu" or (device_map is None and not is_available()):
        found = find_model(model, **source)
        require_memory(found, dtype=stored_dtype(found.config, dtype), quantize=None)


def _settings(asked: Mapping[str, Any], also: Sequence[str], assignments: Sequence[str], *, removal: bool) -> Settings:
    """The settings from the options. Raises OptionError."""
    document: dict[str, Any] = {"also": list(also)}
    for option, name in FLAGS.items():
        if option in asked:
            assign(document, name, asked[option], said=f"--{option.replace('_', '-')}")
    for assignment in assignments:
        put(document, assignment)
    if not removal:
        if document.get("removal"):
            raise OptionError(
                f"--no-removal removes nothing, so leave out the settings of removal: {', '.join(document['removal'])}."
            )
        document["removal"] = None
    return settings_from(document)


def _tell(explanation: Any, attempt: Any, out: Path, *, as_json: bool) -> None:
    if as_json:
        from llmxai.store import to_json

        written = out / "explanation.json"
        document = None if attempt.private is None else json.dumps(to_json(explanation), ensure_ascii=False, indent=1)
        sys.stdout.write(written.read_text(encoding="utf-8") if document is None else document + "\n")
        return
    _summary(explanation)
    if explanation.full_precision is not None:
        from llmxai.store.document import precision_sentence

        typer.echo(f"full precision: {precision_sentence(explanation)}")
    signed = "signed" if attempt.receipt.signed else "unsigned"
    typer.echo(f"record: {attempt.id} ({signed}) in {attempt.folder}")
    for repair in attempt.receipt.repaired:
        typer.echo(f"repaired: {repair}")
    if attempt.private is None:
        typer.echo(f"report: {out / 'report.html'}")
    else:
        typer.echo("report: none was written (--private)")


def _summary(explanation: Any) -> None:
    generation = explanation.generation
    statuses = [str(check.status) for check in explanation.checks]
    typer.echo(f"answer: {''.join(generation.texts[generation.prompt_len :])}")
    if (foil := generation.foil) is not None:
        own = generation.texts[generation.prompt_len + foil.t]
        typer.echo(f"contrast: token {foil.t + 1} is {own!r} and not {foil.text!r}")
    counts = ((statuses.count(status), status) for status in map(str, CURRENT))
    typer.echo(f"tokens: {', '.join(f'{count} {status}' for count, status in counts if count)}")
    words = explanation.answer_words()
    for word in words[:MOST_WORDS]:
        typer.echo(f"  {quoted(trimmed(word.text))}: {word.status}{_first_source(explanation, word)}")
    if (more := len(words) - MOST_WORDS) > 0:
        typer.echo(f"  and {more} more words: see the report")


def _first_source(explanation: Any, word: Any) -> str:
    """What the word depends on most by removal, with the fall in nats; empty if nothing lowers it."""
    from llmxai.store.document import first_measured

    found = first_measured(explanation, word.tokens)
    if found is None:
        return ""
    text, count, effect = found
    named = quoted(trimmed(text)) if count == 1 else f"all {count} mentions of {quoted(trimmed(text))}"
    return f", {effect:.2f} nats less without {named}"


def _device_map(text: str | None) -> Any:
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise OptionError(f"--device-map {text!r} is not a JSON object ({error}).") from error
