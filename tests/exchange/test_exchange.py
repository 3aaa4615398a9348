"""Each destination with its real library, in an environment of its own (make exchange)."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ended import Ended
from needed import needed

from llmxai import Explanation, IntegratedGradients, Settings, explain
from llmxai.errors import OptionError
from llmxai.exchange import results_of
from llmxai.exchange.inseq import to_inseq
from llmxai.models import LoadedModel
from llmxai.store import read_folder

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path(os.environ.get("LLMXAI_EXCHANGE_PYTHON", ROOT / ".venv-exchange" / "bin" / "python"))
FEW = Settings(gradients=IntegratedGradients(max_nodes=8), also=("saliency", "leave_one_out"))


@pytest.fixture(scope="module")
def explanation(tiny_llama: LoadedModel) -> Explanation:
    return explain(tiny_llama, "The capital of France is", response=" Paris and Rome", settings=FEW)


@pytest.fixture(scope="module")
def folder(explanation: Explanation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return explanation.save(tmp_path_factory.mktemp("explained") / "france")


def there(code: str, *arguments: Path | str, cwd: Path) -> Any:
    """What the code prints last, as JSON, where the real libraries are."""
    if not PYTHON.exists():
        needed("the libraries of tests/exchange/requirements.in are missing", "exchange")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [PYTHON, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_results_are_shares_of_tokens(explanation: Explanation, folder: Path) -> None:
    document, _ = read_folder(folder)
    results = {result.name: result for result in results_of(document)}
    n = len(explanation)
    counts = Counter(str(check.status) for check in explanation.checks)
    assert results["llmxai.sources"].value == counts["confirmed"] / n
    assert results["llmxai.sources"].label == document["verdict"]
    assert all(f"{counts[status]} {status}" in results["llmxai.sources"].explanation for status in counts)
    certificate = explanation.gradients.certificate
    assert certificate is not None
    assert results["llmxai.accuracy"].value == sum(certificate.converged) / n
    readable = sum(check.attention == "readable" for check in explanation.checks)
    assert results["llmxai.attention"].value == readable / n


def test_opentelemetry(folder: Path, tmp_path: Path) -> None:
    code = """
import json, sys
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from llmxai.exchange.otel import emit
exporter, provider = InMemoryLogRecordExporter(), LoggerProvider()
provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
n = emit(sys.argv[1], traceparent=parent, response_id="r-1", provider=provider)
records = [each.log_record for each in exporter.get_finished_logs()]
print(json.dumps([n, [[r.event_name, hex(r.trace_id), hex(r.span_id), dict(r.attributes)] for r in records]]))
"""
    n, events = there(code, folder, cwd=tmp_path)
    results = results_of(read_folder(folder)[0])
    assert n == len(events) == len(results) == 3
    for result, (name, trace, span, attributes) in zip(results, events, strict=True):
        assert name == "gen_ai.evaluation.result"
        assert (trace, span) == ("0xaf7651916cd43dd8448eb211c80319c", "0xb7ad6b7169203331")
        assert attributes == {
            "gen_ai.evaluation.name": result.name,
            "gen_ai.evaluation.score.value": result.value,
            "gen_ai.evaluation.score.label": result.label,
            "gen_ai.evaluation.explanation": result.explanation,
            "gen_ai.response.id": "r-1",
        }


def test_names_of_the_semantic_conventions(tmp_path: Path) -> None:
    """The attributes that the events use are those that OpenTelemetry's own package names."""
    code = """
import json
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as names
print(json.dumps([getattr(names, f"GEN_AI_{n}") for n in (
    "EVALUATION_NAME", "EVALUATION_SCORE_VALUE", "EVALUATION_SCORE_LABEL", "EVALUATION_EXPLANATION", "RESPONSE_ID")]))
"""
    source = (ROOT / "llmxai" / "exchange" / "otel.py").read_text(encoding="utf-8")
    assert all(f'"{name}"' in source for name in there(code, cwd=tmp_path))


def test_mlflow(folder: Path, tmp_path: Path) -> None:
    code = """
import json, sys
import mlflow
from llmxai.exchange.mlflow import log
mlflow.set_tracking_uri("sqlite:///mlflow.db")
mlflow.set_experiment("llmxai")
answer = mlflow.trace(lambda prompt: "Paris")
answer("The capital of France is")
trace = mlflow.get_last_active_trace_id()
mlflow.flush_trace_async_logging()
with mlflow.start_run() as run:
    pass
n = log(sys.argv[1], trace_id=trace, run_id=run.info.run_id)
client = mlflow.MlflowClient()
found = mlflow.get_trace(trace).info.assessments
print(json.dumps([
    n,
    [[a.name, a.feedback.value, a.rationale, a.source.source_id, a.metadata["label"]] for a in found],
    client.get_run(run.info.run_id).data.metrics,
    [each.path for each in client.list_artifacts(run.info.run_id, "llmxai/france")],
]))
"""
    n, feedback, metrics, artifacts = there(code, folder, cwd=tmp_path)
    results = results_of(read_folder(folder)[0])
    assert n == len(results)
    assert sorted(feedback) == sorted([r.name, r.value, r.explanation, "llmxai", r.label] for r in results)
    assert metrics == {r.name: r.value for r in results}
    assert sorted(Path(path).name for path in artifacts) == ["explanation.json", "maps.safetensors", "report.html"]


LOG = """
import json
from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSample, EvalSpec, write_eval_log
from inspect_ai.model import ChatMessageSystem, ChatMessageUser, ModelOutput
from inspect_ai.scorer import Score
def sample(id, asked, answer):
    output = ModelOutput.from_content("mockllm/model", answer)
    return EvalSample(id=id, epoch=1, input=asked, target=answer.strip(), messages=[], output=output,
                      scores={"includes": Score(value="C")})
turns = [ChatMessageSystem(content="Be short."), ChatMessageUser(content="Italy:")]
samples = [sample(1, "The capital of France is", " Paris"), sample("it/aly", turns, " Rome")]
spec = EvalSpec(created="2026-01-01T00:00:00+00:00", task="capitals", dataset=EvalDataset(), model="mockllm/model",
                config=EvalConfig())
write_eval_log(EvalLog(eval=spec, samples=samples, status="success"), "capitals.eval")
print(json.dumps("capitals.eval"))
"""


def test_inspect(model_folder: Path, tmp_path: Path) -> None:
    """A real log is read as rows, explained, and gets the scores of each of its samples."""
    log = tmp_path / there(LOG, cwd=tmp_path)
    code = "import json, sys; from pathlib import Path; from llmxai.runs.data import eval_samples\n"
    rows = there(code + "print(json.dumps(list(eval_samples(Path(sys.argv[1])))))", log, cwd=tmp_path)
    assert [(row["row"], row["input"], row["response"], row["target"]) for row in rows] == [
        ("1-1", "The capital of France is", " Paris", "Paris"),
        ("it-aly-1", "Italy:", " Rome", "Rome"),
    ]
    assert [row["system"] for row in rows] == ["", "Be short."]
    recipe = {
        "version": 2,
        "name": "log",
        "model": {"name": str(model_folder), "dtype": "float32"},
        "data": [{"path": str(log), "prompt": "{{ input }}", "response": "{{ response }}"}],
        "explain": {"gradients": {"max_nodes": 8}, "removal": None},
    }
    (tmp_path / "log.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    code = """
import json, sys
from pathlib import Path
from llmxai.runs import read_recipe, run_recipe
from llmxai.exchange.inspect import write_scores
from inspect_ai.log import read_eval_log
outcome = run_recipe(read_recipe("log.yaml"), Path("run"), root=Path("."))
n = write_scores(sys.argv[1], "run", "explained.eval")
found = read_eval_log("explained.eval")
print(json.dumps([outcome.ok, n, [{k: [s.value, s.answer] for k, s in each.scores.items()} for each in found.samples]]))
"""
    ok, n, scores = there(code, log, cwd=tmp_path)
    assert (ok, n) == (2, 2)
    for row, own in zip(("1-1", "it-aly-1"), scores, strict=True):
        assert own["includes"] == ["C", None]  # what was there stays
        results = results_of(read_folder(tmp_path / "run" / "records" / row)[0])
        assert {name: own[name] for name in own if name != "includes"} == {r.name: [r.value, r.label] for r in results}


def test_inseq(explanation: Explanation, folder: Path, tmp_path: Path) -> None:
    code = """
import json, sys
from inseq import FeatureAttributionOutput
out = FeatureAttributionOutput.load(sys.argv[1])
(sequence,) = out.sequence_attributions
shown = out.show(display=False, return_html=True, do_aggregation=False)
print(json.dumps([
    [[t.id, t.token] for t in sequence.target], len(sequence.source), sequence.attr_pos_start, sequence.attr_pos_end,
    sequence.target_attributions.nan_to_num(1e9).tolist(),
    {name: values.tolist() for name, values in sequence.step_scores.items()}, out.info["attribution_method"],
    out.get_scores_dicts(do_aggregation=False)[0]["target_attributions"].keys().__len__(), len(str(shown)) > 100,
]))
"""
    generation = explanation.generation
    first, n = generation.prompt_len, len(generation.ids)
    for method in (None, "layer_integrated_gradients", "saliency"):
        (tmp_path / "out.json").write_text(to_inseq(folder, method=method), encoding="utf-8")
        tokens, source, start, end, values, steps, name, shown, drawn = there(code, tmp_path / "out.json", cwd=tmp_path)
        assert tokens == [[token, text] for token, text in zip(generation.ids, generation.texts, strict=True)]
        assert (source, start, end, shown, drawn) == (first, first, n, n - first, True)
        assert name == (method or "deletion_path")
        for t in range(n - first):
            column = np.array(values)[:, t]
            assert (column[first + t :] == 1e9).all()
            wanted = explanation.scores[name].values[t, : first + t].numpy()
            np.testing.assert_allclose(column[: first + t], wanted, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(steps["probability"], np.exp(explanation.replay.logprobs), rtol=1e-5)


def test_inseq_refuses_what_is_not_there(folder: Path) -> None:
    with pytest.raises(OptionError, match=r"has no scores of 'salience'\. Did you mean 'saliency'"):
        to_inseq(folder, method="salience")


@pytest.mark.parametrize(
    ("command", "library", "extra"),
    [
        (["otel", "{folder}"], "opentelemetry", "otel"),
        (["mlflow", "{folder}", "--run", "r"], "mlflow", "mlflow"),
        (["inspect", "run", "log.eval", "out.eval"], "inspect_ai", "inspect"),
    ],
)
def test_without_the_library_the_command_says_how_to_get_it(
    run: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    command: list[str],
    library: str,
    extra: str,
) -> None:
    for name in (library, f"{library}._logs", f"{library}.log"):
        monkeypatch.setitem(importlib.import_module("sys").modules, name, None)
    ended = run("send", *(part.format(folder=folder) for part in command))
    assert ended.code == 2
    assert f"pip install 'llmxai[{extra}]'" in ended.err


def test_the_commands(run: Callable[..., Ended], folder: Path, tmp_path: Path) -> None:
    assert run("send", "inseq", folder, tmp_path / "out.json").code == 0
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["__instance_type__"]
    assert run("send", "inseq", folder, tmp_path / "no" / "out.json").code == 2
    refused = run("send", "mlflow", folder)
    assert refused.code == 2
    assert "Give a trace id, a run id, or both" in refused.err
