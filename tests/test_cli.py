"""The command line: what it prints, where, and how it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import yaml
from ended import Run
from tiny import make_model, make_tokenizer

import llmxai
from llmxai import cli, load_explanation
from llmxai.commands.explain import EXAMPLES
from llmxai.commands.terminal import MOST_WORDS, verdict_sentence
from llmxai.errors import OptionError
from llmxai.methods import METHODS
from llmxai.models import finding, loading
from llmxai.report.visible import times
from llmxai.settings import field_paths
from llmxai.store.document import falls_of
from llmxai.text import quoted, trimmed

FILES = ["evidence", "explanation.json", "maps.safetensors", "report.html"]
STAGES = (
    *("starting: importing PyTorch and transformers", "loading the model", "generating, at most 2 tokens"),
    *("replaying", "removing parts of the text", "integrating gradients", "integrating the deletion path"),
    *("rolling out attention", "gradient weighted rollout", "tracing through the answer"),
    "writing the report",
)


def explain(model: Path, *more: str | Path) -> list[str | Path]:
    return ["explain", "--model", model, "--max-new-tokens", "2", "--max-nodes", "8", *more]


def said(text: str) -> list[str]:
    """The lines that are llmxai's own; transformers may warn among them."""
    return [line for line in text.splitlines() if line.startswith("llmxai: ")]


def test_version(run: Run) -> None:
    ended = run("--version")
    assert (ended.code, ended.out.strip()) == (0, f"llmxai {version('llmxai')}")


def test_methods_lists_the_table(run: Run) -> None:
    ended = run("methods")
    assert ended.code == 0
    for entry in METHODS.values():
        assert entry.name in ended.out
        assert entry.summary in ended.out
        assert entry.source.rsplit(" ", 1)[-1] in ended.out


def test_help_names_every_option_and_has_a_text_for_each(run: Run) -> None:
    import typer

    ended = run("explain", "--help")
    assert ended.code == 0
    command = typer.main.get_command(cli.app).commands["explain"]
    shown = [option for option in command.params if option.name != "help" and not getattr(option, "hidden", False)]
    assert all(option.help for option in shown)
    panels = {getattr(option, "rich_help_panel", None) for option in shown if option.param_type_name == "option"}
    assert None not in panels
    assert len(panels) == 7
    assert all(f"╭─ {panel} ─" in ended.out for panel in panels)
    assert all(example.split()[-1] in ended.out for example in EXAMPLES.split("\n\n"))


def test_explain_writes_the_folder(run: Run, model_folder: Path, tmp_path: Path) -> None:
    ended = run(*explain(model_folder, "--prompt", "The capital of France", "--out", tmp_path / "out"))
    assert ended.code == 0
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == FILES
    lines = ended.out.splitlines()
    assert lines[-1] == f"report: {tmp_path / 'out' / 'report.html'}"
    assert lines[0].startswith("answer: ")
    explanation = load_explanation(tmp_path / "out")
    words = explanation.answer_words() or list(explanation)
    assert len(words) <= MOST_WORDS
    for line, word in zip(lines[1:], words, strict=False):
        assert line.split(maxsplit=2)[:2] == [quoted(trimmed(word.text), 20), word.status]
        assert explanation.effects is not None
        if falls := falls_of(explanation.generation, explanation.effects, range(*word.tokens)):
            assert (times(-falls[0].nats) if falls[0].averaged else "% -> ") in line
        else:
            assert line.endswith("nothing taken away lowers it")
    assert lines[1 + len(words)] == verdict_sentence(explanation)


def test_targets_of_the_answer(run: Run, model_folder: Path, tmp_path: Path) -> None:
    """What a script relies on: every target has its text, its traced and its direct sources."""
    options = ("--prompt", "The capital of France", "--response", " Paris and Rome", "--out", tmp_path / "out")
    ended = run(*explain(model_folder, *options, "--target", "answer", "--target", "Rome", "--target", "0:1", "--json"))
    assert ended.code == 0
    document = json.loads(ended.out)
    assert [target["text"] for target in document["targets"][:2]] == [" Paris and Rome", " Rome"]
    assert document["targets"][2]["tokens"][1] == document["targets"][2]["tokens"][0] + 1
    prompt = {tuple(unit["tokens"]) for unit in document["trace"]["units"] if unit["kind"] == "prompt"}
    for target in document["targets"]:
        shares = [source["share"] for source in target["traced"]]
        assert shares == sorted(shares, reverse=True)
        assert 0 < sum(shares) <= 1.0001
        units = [document["trace"]["units"][source["unit"]] for source in target["traced"]]
        assert {tuple(unit["tokens"]) for unit in units} <= prompt
        assert [source["text"] for source in target["traced"]] == [unit["text"] for unit in units]
        assert all(source["path"][0]["unit"] == source["unit"] for source in target["traced"])
        assert all(0 < one["share"] <= 1 for one in target["direct"])
    ended = run(*explain(model_folder, *options, "--target", "Rom", "--overwrite"))
    assert ended.code == 2
    assert "The target 'Rom' does not occur in the answer. Nearest is 'Rome'" in ended.err


def test_plain_progress_lines_when_there_is_no_terminal(run: Run, model_folder: Path, tmp_path: Path) -> None:
    ended = run(*explain(model_folder, "--prompt", "Hello", "--out", tmp_path / "out"))
    lines = ended.err.splitlines()
    planned = next(line for line in lines if line.startswith("llmxai: planned "))
    assert "1024 tokens at once, activations kept for the backward pass" in planned
    counted = re.compile(r", \d+ of \d+, \d+:\d\d:\d\d left$")
    own = [line for line in said(ended.err) if line != planned and not counted.search(line)]
    assert own == [f"llmxai: {stage}" for stage in STAGES]
    early = lines[: lines.index("llmxai: integrating gradients")]
    assert sum(line.startswith("answer: ") for line in early) == 1  # and the sources by removal, before the gradients
    assert early[-1].startswith("  ")
    assert "\x1b" not in ended.err + ended.out


def test_json_is_all_that_is_on_stdout(run: Run, model_folder: Path, tmp_path: Path) -> None:
    ended = run(*explain(model_folder, "--prompt", "Hello", "--json", "--out", tmp_path / "out"))
    assert ended.code == 0
    document = json.loads(ended.out)
    assert document == json.loads((tmp_path / "out" / "explanation.json").read_text(encoding="utf-8"))


def test_where_the_prompt_comes_from(run: Run, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("naïve 😀", encoding="utf-8")
    turns = [{"role": "system", "content": "You are helpful."}, {"role": "user", "content": "Hello"}]
    (tmp_path / "turns.json").write_text(json.dumps(turns))
    (tmp_path / "wrapped.json").write_text(json.dumps({"messages": turns}))
    wanted = [
        (["naïve 😀"], {"messages": [{"role": "user", "content": "naïve 😀"}]}),
        (["naïve 😀", "--raw"], {"prompt": "naïve 😀"}),
        (["--prompt", "naïve 😀"], {"messages": [{"role": "user", "content": "naïve 😀"}]}),
        (["--prompt-file", "prompt.txt", "--raw"], {"prompt": "naïve 😀"}),
        (["--prompt-file", "prompt.txt", "--chat"], {"messages": [{"role": "user", "content": "naïve 😀"}]}),
        (["--messages", "turns.json"], {"messages": turns}),
        (["--messages", "wrapped.json", "--response", "Paris"], {"messages": turns, "response": "Paris"}),
    ]
    for options, request in wanted:
        ended = run(*explain(model_folder, *options, "--json", "--out", tmp_path / "out", "--overwrite"))
        assert json.loads(ended.out)["generation"]["request"] == request


def test_a_prompt_without_a_chat_template(run: Run, model_folder: Path, tmp_path: Path) -> None:
    """Plain text is the prompt, unless --chat insists on the template."""
    plain = tmp_path / "plain"
    shutil.copytree(model_folder, plain)
    (plain / "chat_template.jinja").unlink()
    document = json.loads(run(*explain(plain, "Hello", "--json")).out)
    assert document["generation"]["request"] == {"prompt": "Hello"}
    refused = run(*explain(plain, "Hello", "--chat"))
    assert refused.code == 2
    assert "has no chat template" in refused.err


def test_removal_is_as_it_was_asked_for(run: Run, model_folder: Path) -> None:
    question = ("--prompt", "The capital of France", "--json")
    options = ("--removal-operator", "mean", "--removal-units", "token")
    document = json.loads(run(*explain(model_folder, *question, *options)).out)
    assert document["ablations"]["operator"] == "mean"
    assert document["ablations"]["kind"] == "token"
    assert all(target["referee"] is not None for target in document["targets"])
    ended = run(*explain(model_folder, *question, "--no-removal"))
    document = json.loads(ended.out)
    assert document["ablations"] is None
    assert all(target["referee"] is None for target in document["targets"])
    assert "removing parts of the prompt" not in ended.err


def test_options_reach_the_library(run: Run, model_folder: Path) -> None:
    options = ["--temperature", "0.8", "--top-p", "0.9", "--top-k", "40", "--seed", "5"]
    options += ["--features", "all", "--baseline", "zero"]
    ended = run(
        *explain(model_folder, "--prompt", "Hello", "--tolerance", "0.3", *options, "--json", "--dtype", "float64")
    )
    document = json.loads(ended.out)
    decoding, settings = document["generation"]["decoding"], document["computed"]
    assert (decoding["temperature"], decoding["top_p"], decoding["top_k"], decoding["seed"]) == (0.8, 0.9, 40, 5)
    assert (settings["features"], settings["baseline"]) == ("all", "zero")
    assert settings["tolerance"]["relative"] == 0.3
    assert document["environment"]["model"]["dtype"] == "float64"


PROMPT = ("--prompt", "Hello")
LONG = "n" * 300
"""Longer than the name of a file may be."""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "exactly one of PROMPT"),
        (["Hello", *PROMPT], "exactly one of"),
        ([*PROMPT, "--raw", "--chat"], "Leave one out"),
        (["--messages", "broken.json", "--raw"], "Leave out --raw"),
        ([*PROMPT, "--private", "--open"], "Leave out --open"),
        ([*PROMPT, "--foil", " "], "The foil is empty"),
        (["--prompt", "\ud83d"], "The prompt holds a lone surrogate"),
        ([*PROMPT, "--prompt-file", "x"], "exactly one of"),
        (["--prompt", ""], "prompt is empty"),
        (["--prompt-file", "missing.txt"], "missing.txt: there is no such file"),
        (["--prompt-file", "taken"], "taken: is a folder"),
        (["--prompt-file", "latin.txt"], "latin.txt: is not UTF-8 text"),
        (["--messages", "missing.json"], "missing.json: there is no such file"),
        ([*PROMPT, "--documents", LONG], "cannot be read"),
        ([*PROMPT, "--documents", "deep.jsonl"], "deep.jsonl: line 1 is not JSON"),
        (["--messages", "broken.json"], "broken.json: is not JSON"),
        (["--messages", "number.json"], "holds a JSON int; expected a list"),
        (["--messages", "assistant.json"], "last message is the assistant's"),
        ([*PROMPT, "--response", ""], "response is empty"),
        ([*PROMPT, "--dtype", "float8"], "dtype 'float8' is unknown"),
        ([*PROMPT, "--quantize", "3bit"], "quantize '3bit' is unknown"),
        ([*PROMPT, "--features", "words"], "features 'words' is unknown"),
        ([*PROMPT, "--baseline", "grey"], "baseline 'grey' is unknown"),
        ([*PROMPT, "--removal-operator", "burn"], "'burn' is unknown. Known: delete, baseline, mean"),
        ([*PROMPT, "--removal-units", "page"], "'page' is unknown. Known: auto, token, word, sentence"),
        ([*PROMPT, "--also", "limee"], "unknown method 'limee'. Did you mean 'lime'?"),
        ([*PROMPT, "--variant", "saliency"], "variant 'saliency' is unknown. Known: max_head_rollout"),
        ([*PROMPT, "--set", "rollout.head_fusion"], "expected a.b=value"),
        ([*PROMPT, "--set", "rollout.fusion=max"], "there is no 'rollout.fusion'. Did you mean 'rollout."),
        ([*PROMPT, "--tolerance", "-1"], "tolerance: relative -1.0"),
        ([*PROMPT, "--max-nodes", "0"], "max_nodes is 0"),
        ([*PROMPT, "--max-new-tokens", "0"], "max_new_tokens is 0"),
        ([*PROMPT, "--temperature", "-1"], "temperature is -1.0"),
        ([*PROMPT, "--top-p", "2"], "top_p is 2.0"),
        ([*PROMPT, "--top-k", "-1"], "top_k is -1"),
        ([*PROMPT, "--device-map", "{broken"], "--device-map '{broken' is not a JSON object"),
        ([*PROMPT, "--device-map", "somewhere"], "somewhere"),
        ([*PROMPT, "--model", LONG], "could not be read from the hub"),
        ([*PROMPT, "--model", "\udcff"], "model '\\udcff' is not UTF-8"),
        ([*PROMPT, "--model", f"{LONG}.gguf"], "no such file"),
        ([*PROMPT, "--revision", "main"], "only models on the hub have revisions"),
        ([*PROMPT, "--revision", "\udcff"], "revision '\\udcff' is not UTF-8"),
        ([*PROMPT, "--model", "smollm2", "--revision", "main"], "smollm2 is not one"),
        ([*PROMPT, "--adapter", "taken"], "there is no adapter_config.json in it"),
        ([*PROMPT, "--model", "nobody/nothing"], "nobody/nothing"),
        ([*PROMPT, "--model", "missing.gguf"], "missing.gguf: no such file"),
        ([*PROMPT, "--adapter", "missing-adapter"], "missing-adapter: cannot be read as a PEFT adapter"),
        ([*PROMPT, "--out", "taken"], "holds 'thesis.tex', which llmxai did not write"),
        ([*PROMPT, "--out", "latin.txt"], "is a file"),
    ],
)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_users_mistake_is_one_paragraph(
    run: Run, model_folder: Path, tmp_path: Path, options: Sequence[str], words: str
) -> None:
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1"))
    (tmp_path / "broken.json").write_text("[{")
    (tmp_path / "number.json").write_text("5")
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "assistant.json").write_text(json.dumps(turns))
    (tmp_path / "deep.jsonl").write_text("[" * 10**5)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("years of work")
    before = set(tmp_path.rglob("*"))
    ended = run(*explain(model_folder, *options))
    assert ended.code == 2
    assert ended.out == ""
    assert "Traceback" not in ended.err
    stages = (*(f"llmxai: {stage}" for stage in STAGES), "llmxai: planned ")
    refusals = [line for line in said(ended.err) if not line.startswith(stages)]
    assert len(refusals) == 1
    assert words in refusals[0]
    assert ended.err.splitlines()[-1] == refusals[0]
    assert set(tmp_path.rglob("*")) == before


def test_what_is_refused_once_the_model_is_asked_leaves_its_record(
    run: Run, model_folder: Path, tmp_path: Path
) -> None:
    ended = run(*explain(model_folder, "!" * 300, "--out", "out"))
    assert ended.code == 2
    assert "takes 256" in said(ended.err)[-1]
    record = only_record(tmp_path.rglob("*"))
    assert record["kind"] == "refusal"
    assert record["options"]["max_new_tokens"] == 2


def only_record(written: Iterable[Path]) -> dict[str, Any]:
    """The one record that was written, in a log with nothing next to it but the folders that it lies in."""
    files = {path.name: path for path in written if path.is_file()}
    assert set(files) <= {".lock", "log.jsonl", "content.jsonl", "checkpoints.jsonl"}
    (line,) = files["log.jsonl"].read_text(encoding="utf-8").splitlines()
    return dict(json.loads(line)["record"])


def test_nan_weights_end_with_2_and_no_folder(run: Run, tmp_path: Path) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    ended = run(*explain(tmp_path / "model", "--prompt", "Hello", "--out", tmp_path / "out"))
    assert ended.code == 2
    assert "NaN" in said(ended.err)[-1]
    assert only_record((tmp_path / "out").rglob("*"))["error"]["type"] == "NonFiniteError"


def test_an_unknown_option_ends_with_2(run: Run) -> None:
    ended = run("explain", "--colour", "red")
    assert ended.code == 2
    assert "--colour" in ended.err


def test_an_interrupt_writes_nothing_but_its_record(
    run: Run, monkeypatch: pytest.MonkeyPatch, model_folder: Path, tmp_path: Path
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["llmxai.explain"], "answer", interrupt)
    ended = run(*explain(model_folder, *PROMPT))
    assert ended.code == 130
    record = only_record(tmp_path.rglob("*"))
    assert (record["kind"], record["error"]) == ("failure", {"interrupted": True, "type": "KeyboardInterrupt"})


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, model_folder: Path, tmp_path: Path) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.modules["llmxai.explain"], "answer", bug)
    monkeypatch.setattr(sys, "argv", ["llmxai", *map(str, explain(model_folder, *PROMPT))])
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.main()
    assert only_record(tmp_path.rglob("*"))["error"] == {"interrupted": False, "type": "ZeroDivisionError"}


def test_the_installed_command(model_folder: Path, tmp_path: Path) -> None:
    """Once as a process of its own: no checks of types there, and nothing of pytest's."""
    (tmp_path / "words.json").write_text('["Hello"]')
    command = [
        str(Path(sys.executable).with_name("llmxai")),
        *map(str, explain(model_folder, "--messages", "words.json")),
    ]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    assert "Message 0 is 'Hello'; expected an object" in ended.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["words.json"]


def test_how_gradients_are_computed(run: Run, model_folder: Path) -> None:
    ended = run(
        *explain(
            model_folder,
            "--prompt",
            "Hello",
            "--gradient-dtype",
            "bfloat16",
            "--checkpoint",
            "--chunk-tokens",
            "64",
            "--json",
        )
    )
    assert ended.code == 0
    settings = json.loads(ended.out)["computed"]
    assert settings["gradient_dtype"] == "bfloat16"
    assert settings["checkpoint"] is True
    assert settings["chunk_tokens"] == 64
    refused = run(*explain(model_folder, "--prompt", "Hello", "--gradient-dtype", "bf16"))
    assert refused.code == 2
    assert "dtype 'bf16' is unknown" in refused.err


def test_all_settings_are_listed_and_nothing_is_done(run: Run, tmp_path: Path) -> None:
    ended = run("explain", "--settings")
    assert ended.code == 0
    lines = dict(line.split(" = ", 1) for line in ended.out.splitlines())
    defaults = {path: list(value) if isinstance(value, tuple) else value for path, value in field_paths().items()}
    assert {path: json.loads(value) for path, value in lines.items()} == defaults
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "now"),
    [
        (["--referee"], "--removal/--no-removal"),
        (["--no-referee"], "--removal/--no-removal"),
        (["--ablation-operator", "mean"], "--removal-operator"),
        (["--ablation-units=word"], "--removal-units"),
    ],
)
def test_an_option_of_before_says_what_it_is_called_now(run: Run, options: list[str], now: str) -> None:
    ended = run("explain", *PROMPT, *options)
    assert ended.code == 2
    assert ended.out == ""
    (paragraph,) = ended.err.splitlines()
    assert paragraph.startswith("llmxai: --")
    assert paragraph.endswith(f"is now called {now}.")
    assert options[0].partition("=")[0] not in run("explain", "--help").out


@pytest.mark.parametrize(
    "options",
    [
        ["--also", "lim"],
        ["--variant", "lime"],
        ["--set", "gradients.max_node=8"],
        ["--baseline", "grey"],
        ["--temperature", "-1"],
        ["--gradient-dtype", "float8"],
        ["--removal-units", "page"],
        ["--no-removal", "--removal-units", "word"],
        ["--dtype", "float8"],
        ["--quantize", "3bit"],
        ["--device-map", "{broken"],
        ["--device-map", "somewhere"],
        ["--device-map", "cuda:99"],
        ["--device-map", "cpu:1"],
        ["--device-map", "{}"],
        *(["--device-map", f'{{"": {place}}}'] for place in ("null", "true", "-5", "99", '"banana"', '"cuda:200"')),
        ["--compare-full"],
    ],
)
def test_options_are_checked_before_the_model_is_read(
    run: Run, monkeypatch: pytest.MonkeyPatch, model_folder: Path, options: list[str]
) -> None:
    monkeypatch.setattr(loading, "find_model", lambda *_what, **_how: pytest.fail("the model is being loaded"))
    ended = run(*explain(model_folder, *PROMPT, *options))
    assert ended.code == 2
    assert len([line for line in said(ended.err) if line != f"llmxai: {STAGES[0]}"]) == 1
    assert "Traceback" not in ended.err


def test_the_devices_of_this_machine_are_those_that_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    for place in ("auto", "cpu", "cuda", "cuda:1", {"a": 0, "b": 1, "c": "cuda:0", "d": "disk", "e": "cpu"}):
        loading.require_options(dtype=None, device_map=place, quantize=None)
    for place in ("cuda:2", "mps", {"": 2}, {"": "xpu:0"}):
        with pytest.raises(OptionError, match="no such device here, only cpu, cuda:0, cuda:1"):
            loading.require_options(dtype=None, device_map=place, quantize=None)


def test_one_more_method_is_computed_and_listed(run: Run, model_folder: Path) -> None:
    asked = (*PROMPT, "--also", "saliency", "--also", "recency", "--json")
    document = json.loads(run(*explain(model_folder, *asked)).out)
    assert document["settings"]["also"] == ["saliency", "recency"]
    assert {"saliency", "recency"} <= document["scores"].keys()
    for target in document["targets"]:
        assert target["sources"]["recency"]


def test_an_earlier_explanation_is_not_replaced_silently(run: Run, model_folder: Path, tmp_path: Path) -> None:
    assert run(*explain(model_folder, "Hello", "--out", "out")).code == 0
    first = (tmp_path / "out" / "explanation.json").read_bytes()
    created = json.loads(first)["created"]
    refused = run(*explain(model_folder, "The capital of France", "--out", "out"))
    assert refused.code == 2
    (paragraph,) = refused.err.splitlines()
    assert f"out: holds the explanation of {created}" in paragraph
    assert "--overwrite" in paragraph
    kept = run(*explain(model_folder, "Hello", "--out", "out", "--overwrite", "--dtype", "float8"))
    assert kept.code == 2
    assert "replacing" not in kept.err
    assert (tmp_path / "out" / "explanation.json").read_bytes() == first
    replaced = run(*explain(model_folder, "The capital of France", "--out", "out", "--overwrite"))
    assert replaced.code == 0
    assert said(replaced.err)[-1].startswith(f"llmxai: replacing the explanation of {created} in out")
    assert (tmp_path / "out" / "explanation.json").read_bytes() != first
    records = (tmp_path / "out" / "evidence" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    kinds = [json.loads(line)["record"]["kind"] for line in records]
    assert kinds == ["explanation", "manifest", "explanation"]


def test_without_out_the_next_free_folder_is_taken(run: Run, model_folder: Path) -> None:
    reports = [run(*explain(model_folder, "Hello")).out.splitlines()[-1] for _ in range(3)]
    assert reports == [f"report: runs/explanation{n}/report.html" for n in ("", "-2", "-3")]
    private = run(*explain(model_folder, "Hello", "--json"), "--overwrite")
    assert "replacing" in private.err
    assert "in runs/explanation;" in private.err


def test_an_explanation_that_appears_meanwhile_is_not_replaced(
    run: Run, monkeypatch: pytest.MonkeyPatch, model_folder: Path, tmp_path: Path
) -> None:
    real = llmxai.load

    def load_while_another_writes(*what: Any, **how: Any) -> Any:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "explanation.json").write_text("{}")
        return real(*what, **how)

    monkeypatch.setattr(llmxai, "load", load_while_another_writes)
    ended = run(*explain(model_folder, "Hello", "--out", "out"))
    assert ended.code == 2
    assert "holds an earlier explanation" in ended.err
    (record,) = (tmp_path / "out" / "evidence" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(record)["record"]["kind"] == "refusal"
    assert (tmp_path / "out" / "explanation.json").read_text() == "{}"


def test_a_name_that_is_too_long_is_one_paragraph_for_every_command(run: Run) -> None:
    for asked in (["run", LONG], ["recipes", "ls", LONG], ["gate", LONG], ["report", LONG], ["table", LONG, "x.csv"]):
        ended = run(*asked)
        assert ended.code == 2
        assert "the name is longer than the file system allows" in ended.err


def test_open_shows_the_report(run: Run, monkeypatch: pytest.MonkeyPatch, model_folder: Path, tmp_path: Path) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert run(*explain(model_folder, "Hello", "--out", "a folder", "--open")).code == 0
    assert opened == [(tmp_path / "a folder" / "report.html").as_uri()]


def command(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """llmxai in a process of its own."""
    root = str(Path(cli.__file__).parents[1])
    path = os.pathsep.join([environment.pop("PYTHONPATH", root), root])
    return subprocess.run(
        [sys.executable, "-m", "llmxai", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_first_line_comes_before_pytorch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit(7)")
    ended = command("explain", "Hello", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert ended.returncode == 7
    assert ended.stderr == f"llmxai: {STAGES[0]}\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_an_encoding_lacks_is_escaped(model_folder: Path, tmp_path: Path, encoding: str) -> None:
    asked = explain(model_folder, "日本", "--response", " Paris 日本", "--out", "out", "--no-removal")
    ended = command(*asked, cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("answer:  Paris \\u65e5\\u672c")
    ended = command(*asked, "--overwrite", "--json", cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert ended.stdout.isascii()
    assert json.loads(ended.stdout)["generation"]["answer"] == " Paris 日本"


@pytest.mark.parametrize("asked", [["recipes", "schema"], ["recipes", "show", "r.yaml"]])
def test_documents_keep_their_meaning_in_every_encoding(tmp_path: Path, asked: list[str]) -> None:
    text = "version: 2\nname: r\ndescription: 日本\ndata: [{suite: needle}]\n"
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    told = [command(*asked, cwd=tmp_path, PYTHONIOENCODING=encoding).stdout for encoding in ("ascii", "utf-8")]
    assert told[0].isascii()
    assert yaml.safe_load(told[0]) == yaml.safe_load(told[1])


def test_shells_complete_its_options(tmp_path: Path) -> None:
    asked = {"_LLMXAI_COMPLETE": "complete_bash", "COMP_WORDS": "llmxai explain --rem", "COMP_CWORD": "2"}
    ended = command(cwd=tmp_path, **asked)
    assert set(ended.stdout.split()) == {"--removal", "--removal-operator", "--removal-units"}


class Hub(BaseHTTPRequestHandler):
    """A model hub that has no model."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.mark.parametrize("reachable", [True, False])
def test_a_misspelt_hub_name_is_one_paragraph(tmp_path: Path, reachable: bool) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = Thread(target=server.serve_forever)
        if reachable:
            thread.start()
        else:
            server.server_close()
        hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "cache")}
        hub |= {"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        ended = command("explain", "--model", "smol/misspelt", "Hello", cwd=tmp_path, **hub)
        if reachable:
            server.shutdown()
            thread.join()
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[:2] == [f"llmxai: {stage}" for stage in STAGES[:2]]
    (paragraph,) = ended.stderr.splitlines()[2:]
    assert paragraph.startswith("llmxai: smol/misspelt: ")
    assert ("Check the spelling" if reachable else "could not be reached") in paragraph
    assert not (tmp_path / "runs").exists()


def test_the_hub_is_asked_once_for_an_adapter_and_never_for_a_local_model(
    run: Run, monkeypatch: pytest.MonkeyPatch, model_folder: Path
) -> None:
    asked: list[str] = []

    def refuse(name: str, **_how: Any) -> None:
        asked.append(name)
        raise type("ConnectError", (Exception,), {})("no network")

    run("--version")  # which takes the network away
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.model_info", refuse)
    monkeypatch.setattr(loading, "find_model", lambda *_what, **_how: pytest.fail("the model is being loaded"))
    ended = run(*explain(model_folder, *PROMPT, "--adapter", "nobody/nothing"))
    assert "nobody/nothing: cannot be read as a PEFT adapter of this model (no network)" in said(ended.err)[-1]
    assert asked == ["nobody/nothing"]
    monkeypatch.setattr(finding, "base_of_adapter", lambda name: pytest.fail(f"{name} is looked for on the hub"))
    for name in ("smollm2", "some.gguf"):
        assert f"{name}: could not be loaded (no such device)" in str(
            finding.not_found(name, ValueError("no such device"))
        )
