"""`llmxai explain`."""

from __future__ import annotations

import json
import webbrowser
from collections.abc import Mapping, Sequence
from functools import partial
from gc import collect
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from llmxai.commands.console import json_text, log, progress, told_when_interrupted
from llmxai.commands.prompts import asked_from, context_from
from llmxai.commands.terminal import first_lines, link, print_lines, summary
from llmxai.errors import OptionError
from llmxai.settings import Decoding, Settings, assign, field_paths, put, settings_from

TEXTS = ("question", "prompt", "response", "foil", "target", "template_args", "requester", "purpose", "key")
"""Options that the record does not store as settings: texts are kept apart from it and can be removed."""


FLAGS: dict[str, tuple[str, ...]] = {
    "features": ("features",),
    "baseline": ("gradients.baseline",),
    "tolerance": ("gradients.tolerance.relative", "deletion.tolerance.relative"),
    "max_nodes": ("gradients.max_nodes", "deletion.max_nodes"),
    "residual": ("rollout.residual",),
    "variant": ("rollout.variant",),
    "gradient_dtype": ("compute.gradient_dtype",),
    "chunk_tokens": ("compute.chunk_tokens",),
    "checkpoint": ("compute.checkpoint",),
    "removal_operator": ("removal.operator",),
    "removal_units": ("removal.units",),
}
"""The settings behind each option of the command; `--set` reaches the rest, and each of them alone."""

DEFAULT_OUT = Path("runs/explanation")
"""Where an explanation goes if nothing is said; the next one goes to runs/explanation-2, and so on."""
if TYPE_CHECKING:
    from llmxai.evidence import Attempt

ask_option = partial(typer.Option, rich_help_panel="What is asked")
answer_option = partial(typer.Option, rich_help_panel="How it is answered")
model_option = partial(typer.Option, rich_help_panel="The model")
method_option = partial(typer.Option, rich_help_panel="How it is explained")
removal_option = partial(typer.Option, rich_help_panel="What is removed")
output_option = partial(typer.Option, rich_help_panel="What is written")
record_option = partial(typer.Option, rich_help_panel="The record")
"""An option in one of the panels of `--help`."""
DEMO = "Which city is the capital of France?"
EXAMPLES = """Examples:

llmxai explain "Which city is the capital of France?"

llmxai explain "The capital of France is" --raw --response " Paris."

llmxai explain "Which city is the capital of France?" --foil "The capital of France is Lyon."

llmxai explain --messages chat.json --model ./my-model --quantize 4bit --out runs/chat --open"""


def _help(setting: str, text: str) -> str:
    return f"{text} Default: {field_paths()[setting]}."


def _renamed(*names: str, to: str) -> Any:
    """An option of earlier versions, which reports its new name."""

    def refuse(value: Any) -> None:
        if value is not None:
            raise OptionError(f"{'/'.join(names)} is now called {to}.")

    return typer.Option(*names, hidden=True, help=f"Now called {to}.", callback=refuse)


def explain(
    question: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            help="What to ask: one user message through the model's chat template, or plain text if it has none.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str, model_option(help="smollm2 (embedded), a .gguf file, a local folder or a hub name.")
    ] = "smollm2",
    prompt: Annotated[str | None, ask_option(help="The same as PROMPT.")] = None,
    prompt_file: Annotated[Path | None, ask_option(help="The prompt from a UTF-8 file.")] = None,
    messages: Annotated[
        Path | None, ask_option(help='JSON file of chat messages: [{"role": ..., "content": ...}].')
    ] = None,
    chat: Annotated[bool, ask_option("--chat", help="Refuse a model that has no chat template.")] = False,
    raw: Annotated[
        bool, ask_option("--raw", help="Pass the prompt to the model unchanged, without the chat template.")
    ] = False,
    response: Annotated[str | None, ask_option(help="Explain this answer instead of a generated one.")] = None,
    documents: Annotated[
        Path | None,
        ask_option(help="Documents: a .jsonl file of {title, text}, or a folder of text files named by title."),
    ] = None,
    documents_in: Annotated[
        str, ask_option(help="Where documents stand: template, user (before the user's text), or auto.")
    ] = "auto",
    tools: Annotated[Path | None, ask_option(help="JSON file of what the model may call: a list of schemas.")] = None,
    template_args: Annotated[
        list[str] | None,
        ask_option("--template-arg", help="A variable of the chat template: enable_thinking=false. Repeatable."),
    ] = None,
    continue_final_message: Annotated[
        bool, ask_option("--continue-final-message", help="The answer continues the assistant's last message.")
    ] = False,
    foil: Annotated[
        str | None,
        ask_option(help="Another answer: explain why the model chose its own instead, where they first differ."),
    ] = None,
    target: Annotated[
        list[str] | None,
        ask_option(
            help="What to explain: token (each one, the default), word, sentence, answer (all at once), i:j (a range "
            "of generated tokens) or a text of the answer; can be given several times."
        ),
    ] = None,
    max_new_tokens: Annotated[int, answer_option(help="Longest answer to generate.")] = 64,
    temperature: Annotated[float, answer_option(help="0 is greedy; above 0 samples.")] = 0.0,
    top_p: Annotated[float, answer_option(help="Nucleus sampling, with a temperature.")] = 1.0,
    top_k: Annotated[int, answer_option(help="Sample among so many tokens; 0: among all.")] = 0,
    seed: Annotated[int, answer_option(help="Seed of the sampling.")] = 0,
    features: Annotated[str | None, method_option(help=_help("features", "content, prompt or all."))] = None,
    baseline: Annotated[
        str | None,
        method_option(help=_help("gradients.baseline", "space, zero, eos, pad, mask, mean, id:N, token:TEXT.")),
    ] = None,
    tolerance: Annotated[
        float | None,
        method_option(
            help=_help("gradients.tolerance.relative", "Allowed error of both integrals, relative to the change in F.")
        ),
    ] = None,
    max_nodes: Annotated[
        int | None,
        method_option(help=_help("gradients.max_nodes", "Gradient evaluations per target and integral, at most.")),
    ] = None,
    residual: Annotated[
        float | None, method_option(help=_help("rollout.residual", "Share of a layer that stays unmixed."))
    ] = None,
    variant: Annotated[
        str | None,
        method_option(help=_help("rollout.variant", "The second attention method; `llmxai methods` lists them.")),
    ] = None,
    also: Annotated[
        list[str] | None, method_option(help="Another method to compute and show; can be given several times.")
    ] = None,
    gradient_dtype: Annotated[
        str | None,
        method_option(
            help="Gradients on a copy of the weights in this dtype; errors are measured in the model's dtype."
        ),
    ] = None,
    chunk_tokens: Annotated[
        int | None, method_option(help="Tokens that go through the model at once. Default: what the memory allows.")
    ] = None,
    checkpoint: Annotated[
        bool | None,
        method_option(
            "--checkpoint/--no-checkpoint",
            help="Recompute activations in the backward pass: far less memory. Default: if needed.",
        ),
    ] = None,
    removal: Annotated[
        bool, removal_option(help="Remove parts of the prompt to measure their effects and to check the methods.")
    ] = True,
    removal_operator: Annotated[
        str | None, removal_option(help=_help("removal.operator", "How parts are removed: delete, baseline or mean."))
    ] = None,
    removal_units: Annotated[
        str | None, removal_option(help=_help("removal.units", "What a part is: auto, token, word or sentence."))
    ] = None,
    referee: Annotated[bool | None, _renamed("--referee/--no-referee", to="--removal/--no-removal")] = None,
    ablation_operator: Annotated[str | None, _renamed("--ablation-operator", to="--removal-operator")] = None,
    ablation_units: Annotated[str | None, _renamed("--ablation-units", to="--removal-units")] = None,
    assignments: Annotated[
        list[str] | None,
        method_option("--set", help="Any other setting, such as rollout.head_fusion=max; --settings lists them."),
    ] = None,
    list_settings: Annotated[
        bool, method_option("--settings", help="List every setting with its default, and exit.")
    ] = False,
    dtype: Annotated[str | None, model_option(help="float32, bfloat16, float16, float64 or auto.")] = None,
    device_map: Annotated[
        str | None, model_option(help="Accelerate's: auto, balanced, cpu, cuda:0, or a JSON object.")
    ] = None,
    quantize: Annotated[str | None, model_option(help="4bit or 8bit (bitsandbytes).")] = None,
    compare_full: Annotated[
        bool,
        model_option(
            "--compare-full",
            help="With --quantize: also explain the same answer at full precision, and show what differs.",
        ),
    ] = False,
    revision: Annotated[str | None, model_option(help="Branch, tag or commit of a hub model.")] = None,
    adapter: Annotated[str | None, model_option(help="PEFT adapter: folder or hub name.")] = None,
    trust_remote_code: Annotated[
        bool, model_option("--trust-remote-code", help="Let Python code in the model's folder run; records say so.")
    ] = False,
    out: Annotated[
        Path | None,
        output_option(help="Folder to write. Default: runs/explanation or, if there is one, runs/explanation-2, ..."),
    ] = None,
    overwrite: Annotated[
        bool, output_option("--overwrite", help="Replace an earlier explanation in --out; its record stays.")
    ] = False,
    open_report: Annotated[bool, output_option("--open", help="Open the report in the browser.")] = False,
    as_json: Annotated[
        bool, output_option("--json", help="Print explanation.json instead of the report's path.")
    ] = False,
    requester: Annotated[str | None, record_option(help="Who asks, as a pseudonym, for the record.")] = None,
    purpose: Annotated[str | None, record_option(help="Why; goes into the record.")] = None,
    private: Annotated[
        bool, record_option("--private", help="Keep no text and no report, only a record with keyed digests.")
    ] = False,
    key: Annotated[
        Path | None, record_option(help="Signing key file (llmxai keys new); else LLMXAI_SIGNING_KEY[_FILE].")
    ] = None,
) -> None:
    """Explain every token of an answer and write report.html, explanation.json and maps.safetensors."""
    asked = {name: value for name, value in locals().items() if name not in TEXTS and value is not None}
    if list_settings:
        typer.echo("\n".join(f"{name} = {json.dumps(value)}" for name, value in field_paths().items()))
        return
    texts: dict[str, Any] = {"response": response, "foil": foil}
    request = asked_from([question, prompt], prompt_file, messages, raw=raw, chat=chat) | texts
    if private and open_report:
        raise OptionError("--private writes no report, so there is nothing to open. Leave out --open.")
    chosen = _settings(asked, also or (), assignments or (), removal=removal)
    decoding = Decoding(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    source = {"revision": revision, "trust_remote_code": trust_remote_code}
    how = {"dtype": dtype, "device_map": _device_map(device_map), "adapter": adapter, **source}
    place = _place(out, overwrite=overwrite, private=private)
    attempt = _begin(place, asked, private=private, key=key, requester=requester, purpose=purpose)
    with told_when_interrupted("Interrupted; no explanation was written."), progress() as report:
        report("starting: importing PyTorch and transformers", 0, 1)
        given = context_from(
            documents=documents,
            documents_in=documents_in,
            tools=tools,
            template_args=template_args or (),
            continue_final_message=continue_final_message,
        )
        _require_sound(request, chosen, how, quantize=quantize, continues=continue_final_message)
        if compare_full:
            _require_comparison(model, dtype=dtype, device_map=device_map, quantize=quantize, source=source)
        from llmxai import compare_full as compare
        from llmxai import explain as run
        from llmxai import load, save
        from llmxai.evidence import keeping

        read = partial(load, model, **how)
        report("loading the model", 0, 1)
        loaded = read(quantize=quantize)
        asked_for, prompted = _as_prompt(loaded, request)
        attempt.request = asked_for | given
        with keeping(attempt):
            explanation = run(
                loaded,
                prompted,
                **texts,
                **given,
                targets=target or None,
                decoding=decoding,
                settings=chosen,
                progress=report,
                found=lambda *known: report.show(first_lines(*known)),
            )
            if compare_full:
                report("loading the model at full precision", 0, 1)
                del loaded
                collect()  # the quantised one is finished with: both need not fit at once
                explanation = compare(explanation, read(), progress=report)
            report("writing the record" if private else "writing the report", 0, 1)
            if overwrite and not private:
                _say_replaced(place)
            save(explanation, place, replace=overwrite, attempt=attempt)
    _tell(explanation, attempt, place, as_json=as_json)
    if open_report:
        webbrowser.open((place / "report.html").resolve().as_uri())


def demo(
    out: Annotated[Path, typer.Option(help="Folder to write; an earlier demo in it is replaced.")] = Path("runs/demo"),
    open_report: Annotated[bool, typer.Option("--open", help="Open the report in the browser.")] = False,
) -> None:
    """Explain an answer of the embedded model: "Which city is the capital of France?"."""
    explain(DEMO, max_new_tokens=24, out=out, overwrite=True, open_report=open_report)


def _begin(place: Path, asked: Mapping[str, Any], *, private: bool, key: Path | None, **who: str | None) -> Attempt:
    """The attempt, whose record will be in the log of that place."""
    from llmxai.evidence import begin, secret_key, signing_key
    from llmxai.store import evidence_folder

    secret, signer = secret_key() if private else None, signing_key(key)
    attempt = begin(evidence_folder(place), entry="cli", private=secret, signer=signer, **who)
    attempt.options = asked
    return attempt


def _require_sound(
    request: Mapping[str, Any], settings: Settings, how: Mapping[str, Any], *, quantize: str | None, continues: bool
) -> None:
    """Raise for everything that is wrong whatever the model."""
    from transformers.utils.logging import disable_progress_bar

    from llmxai.explain import require_methods
    from llmxai.generation.answer import require_foil, require_response
    from llmxai.generation.chat import require_messages, require_text
    from llmxai.models.loading import require_options

    disable_progress_bar()
    require_methods(settings)
    require_options(dtype=how["dtype"], device_map=how["device_map"], quantize=quantize)
    if "messages" in request:
        require_messages(request["messages"], continues=continues)
    if "prompt" in request:
        require_text(request["prompt"], what="The prompt")
    require_response(request["response"])
    require_foil(request["foil"])


def _as_prompt(loaded: Any, request: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """The request as the record keeps it, and the prompt for this model."""
    from llmxai.generation.prompt import as_chat

    given = {name: request[name] for name in ("response", "foil")}
    if "messages" in request:
        prompt: Any = request["messages"]
    elif request["raw"]:
        prompt = request["prompt"]
    else:
        prompt = as_chat(loaded, request["prompt"], required=request["chat"])
    text = isinstance(prompt, str)
    return {"prompt": prompt if text else None, "messages": None if text else prompt, **given}, prompt


def _place(out: Path | None, *, overwrite: bool, private: bool) -> Path:
    """Where the explanation goes. Raises OutputError if it cannot go there."""
    from llmxai.store import earlier_in, require_writable

    numbered = (DEFAULT_OUT.with_name(f"{DEFAULT_OUT.name}-{n}") for n in count(2))
    place = out or DEFAULT_OUT
    if out is None and not private and not overwrite:
        place = next(folder for folder in chain([DEFAULT_OUT], numbered) if not earlier_in(folder))
    require_writable(place, replace=overwrite or private)
    return place


def _say_replaced(place: Path) -> None:
    from llmxai.store import earlier_in

    if earlier := earlier_in(place):
        log.print(f"llmxai: replacing {earlier} in {place}; its record stays", markup=False, soft_wrap=True)


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
    for option, names in FLAGS.items():
        for name in names if option in asked else ():
            assign(document, name, asked[option], said=f"--{option.replace('_', '-')}")
    off, given = not removal, [*document.get("removal", ())]
    for assignment in assignments:
        put(document, assignment)
        off = off or document.get("removal", given) is None
        given += document["removal"] if isinstance(document.get("removal"), dict) else ()
    if off and given:
        raise OptionError(
            f"{'--set removal=null' if removal else '--no-removal'} removes nothing, so leave out the settings of "
            f"removal: {', '.join(dict.fromkeys(given))}."
        )
    return settings_from(document | ({"removal": None} if off else {}))


def _tell(explanation: Any, attempt: Any, out: Path, *, as_json: bool) -> None:
    if as_json:
        from llmxai.store import to_json

        typer.echo(json_text(to_json(explanation)))
        return
    print_lines(summary(explanation))
    if explanation.full_precision is not None:
        from llmxai.store.document import precision_sentence

        typer.echo(f"full precision: {precision_sentence(explanation)}")
    signed = "signed" if attempt.receipt.signed else "unsigned"
    typer.echo(f"record: {attempt.id} ({signed}) in {attempt.folder}")
    for repair in attempt.receipt.repaired:
        typer.echo(f"repaired: {repair}")
    if attempt.private is None:
        print_lines([Text.assemble("report: ", link(out / "report.html"))])
    else:
        typer.echo("report: none was written (--private)")


def _device_map(text: str | None) -> Any:
    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"--device-map {text[:200]!r} is not a JSON object ({error}).") from error
    if not all(isinstance(place, int | str) for place in found.values()):
        raise OptionError(f'--device-map {text[:200]!r}: expected a device for each module, such as {{"": "cpu"}}.')
    return found
