"""Explanations, refusals and failures of the Python API, public and private; recomputing one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from logs import KEY, make_run
from tiny import make_loaded

from llmxai import Decoding, UserError, explain, save
from llmxai.errors import EvidenceError, OutputError
from llmxai.evidence import (
    SecretKey,
    begin,
    explained,
    export_bundle,
    open_log,
    prune,
    recording,
    redact,
    review,
    verify,
)
from llmxai.evidence.keys import key_id
from llmxai.evidence.log import find, find_run, read_log
from llmxai.evidence.provenance import provenance_of, provenances_of, records_of
from llmxai.explanation import Explanation
from llmxai.models import LoadedModel
from llmxai.recompute import compare, recompute
from llmxai.report.rebuild import rebuild
from llmxai.settings import AttentionRollout, IntegratedGradients, Removal, Settings
from llmxai.store import to_json, to_maps

MESSAGES = [{"role": "user", "content": "Ada Lovelace, 7 Secret Lane?"}]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return make_loaded("llama")


@pytest.fixture(scope="module")
def explanation(loaded: LoadedModel) -> Explanation:
    return explain(
        loaded,
        MESSAGES,
        decoding=Decoding(max_new_tokens=3),
        settings=Settings(gradients=IntegratedGradients(max_nodes=8)),
    )


def only(run: Path) -> dict[str, Any]:
    ((_, record),) = read_log(run)
    return dict(json.loads(record))


def goes_wrong(
    run: Path, error: Exception, *, request: Mapping[str, Any], private: SecretKey | None = None
) -> NoReturn:
    with recording(run / "evidence", private=private) as attempt:
        attempt.request = request
        raise error


def everything_in(run: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file())


def test_a_record_says_what_was_asked_answered_and_how(explanation: Explanation, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with recording(run / "evidence", requester="r7", purpose="audit 3", signer=KEY) as attempt:
        save(explanation, run, attempt=attempt)
    record, generation = only(run), explanation.generation
    certificate = explanation.gradients.certificate
    assert certificate is not None
    assert attempt.receipt is not None
    assert (record["id"], record["kind"], record["entry"]) == (attempt.id, "explanation", "python")
    assert (record["requester"], record["purpose"]) == ("r7", "audit 3")
    assert record["started"] <= record["ended"]
    assert (record["input_tokens"], record["output_tokens"]) == (generation.prompt_len, generation.n_targets)
    assert record["decoding"]["seed"] == 0
    assert record["method"]["names"] == [
        *("layer_integrated_gradients", "deletion_path", "attention_rollout", "gradient_weighted_rollout")
    ]
    assert record["method"]["settings"]["crosscheck"]["version"] == record["method"]["rule_version"]
    assert record["model"]["dtype"] == "float32"
    assert len(record["model"]["tokenizer_digest"]) == len(record["model"]["chat_template_digest"]) == 64
    assert len(record["outcome"]["targets"]) == generation.n_targets
    for t, target in enumerate(record["outcome"]["targets"]):
        assert target["gap"] == pytest.approx(float(certificate.gap[t]))
        assert (target["status"], target["nodes"]) == (
            str(explanation.checks[t].status),
            certificate.nodes[t],
        )
        check, figures = explanation.checks[t], target["check"]
        assert (figures["status"], figures["attention"]) == (check.status, check.attention)
        assert figures["agreement"]["spearman"] == check.agreement.spearman
        assert check.verdict is not None
        assert figures["verdict"]["scores"]["deletion_path"]["lds"] == check.verdict.scores["deletion_path"].lds
        assert check.reason not in json.dumps(figures)
    assert sorted(each["path"] for each in record["artefacts"]) == [
        "explanation.json",
        "maps.safetensors",
        "report.html",
    ]
    assert all((run / each["path"]).stat().st_size == each["bytes"] for each in record["artefacts"])
    assert sorted(record["digests"]) == ["input", "input_ids", "output", "output_ids"]
    verdict = verify(run, key=KEY.public_key())
    assert verdict.findings == []


def test_save_alone_leaves_a_record_too(explanation: Explanation, tmp_path: Path) -> None:
    for n in (1, 2):
        save(explanation, tmp_path / "run", replace=n > 1)
        assert len(read_log(tmp_path / "run")) == n
    assert "start is the start of saving" in json.loads(read_log(tmp_path / "run")[0][1])["warnings"][-1]
    verdict = verify(tmp_path / "run")
    assert [(f.severity, f.what) for f in verdict.findings] == [
        ("note", "3 files of earlier records were replaced by those of later ones")
    ]


def test_without_replace_an_earlier_explanation_and_its_log_stay(explanation: Explanation, tmp_path: Path) -> None:
    run = explanation.save(tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for again in (lambda: save(explanation, run), lambda: explanation.save(run)):
        with pytest.raises(OutputError, match=r"holds the explanation of .*replace=True"):
            again()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    explanation.save(run, replace=True)
    assert len(read_log(run)) == 2


def test_several_explanations_in_one_run(explanation: Explanation, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(explanation, tmp_path / "run" / name, attempt=begin(tmp_path / "run" / "evidence"))
    records = [json.loads(record) for _, record in read_log(tmp_path / "run")]
    assert [record["artefacts"][0]["path"] for record in records] == ["a/report.html", "b/report.html"]
    assert verify(tmp_path / "run").findings == []
    with pytest.raises(EvidenceError, match="is outside"):
        save(explanation, tmp_path / "elsewhere", attempt=begin(tmp_path / "run" / "evidence"))
    assert not (tmp_path / "elsewhere").exists()


def test_one_open_log_serves_many_attempts(explanation: Explanation, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with open_log(run / "evidence", signer=KEY) as log:
        for name in ("a", "b"):
            with recording(log, entry="recipe") as attempt:
                save(explanation, run / "records" / name, attempt=attempt)
        with pytest.raises(UserError), recording(log) as attempt:
            raise UserError("no")
    assert [json.loads(record)["kind"] for _, record in read_log(run)] == ["explanation", "explanation", "refusal"]
    assert len((run / "evidence" / "checkpoints.jsonl").read_bytes().splitlines()) == 1
    assert verify(run, key=KEY.public_key()).findings == []


def test_a_broken_log_stops_before_any_work(explanation: Explanation, tmp_path: Path) -> None:
    run = save(explanation, tmp_path / "run")
    page = (run / "report.html").read_bytes()
    path = run / "evidence" / "log.jsonl"
    path.write_bytes(path.read_bytes().replace(b"explanation", b"Explanation", 1))
    with pytest.raises(EvidenceError, match="Nothing is appended"), recording(run / "evidence"):
        raise AssertionError("the work began")
    with pytest.raises(EvidenceError, match="Nothing is appended"):
        save(explanation, run, replace=True)
    assert (run / "report.html").read_bytes() == page


@pytest.mark.parametrize(
    ("error", "kind"), [(UserError("no such thing"), "refusal"), (ZeroDivisionError("a bug"), "failure")]
)
def test_what_goes_wrong_is_recorded_and_raised(tmp_path: Path, error: Exception, kind: str) -> None:
    with pytest.raises(type(error), match=str(error)):
        goes_wrong(tmp_path, error, request={"messages": MESSAGES, "response": "given"})
    record = only(tmp_path)
    stored = json.loads((tmp_path / "evidence/content.jsonl").read_bytes())["texts"]
    assert (record["kind"], record["error"]["type"]) == (kind, type(error).__name__)
    assert stored["input"] == '[{"content":"Ada Lovelace, 7 Secret Lane?","role":"user"}]'
    assert stored["output"] == "given"
    assert str(error) in stored["error"]
    assert verify(tmp_path).exit == 0


def test_a_record_that_cannot_be_kept_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError) as raised, recording(tmp_path / "file" / "evidence"):
        raise UserError("no")
    assert "No record of this could be kept" in raised.value.__notes__[0]


def test_an_attempt_that_saves_nothing_is_a_refusal(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="without an explanation"), recording(tmp_path / "evidence"):
        pass
    assert only(tmp_path)["kind"] == "refusal"


# private


def test_private_keeps_no_text_and_no_file(explanation: Explanation, tmp_path: Path) -> None:
    key = SecretKey(b"s" * 32)
    with recording(tmp_path / "evidence", private=key) as attempt:
        save(explanation, tmp_path, attempt=attempt)
    data = everything_in(tmp_path)
    answer = "".join(explanation.generation.texts[explanation.generation.prompt_len :])
    for text in (b"Lovelace", b"Secret Lane", answer.encode(), b"salt"):
        assert text not in data
    record = only(tmp_path)
    assert record["content"] == {"mode": "private", "sha256": None, "key": key.id}
    assert record["outcome"]["targets"] == []
    assert record["artefacts"] == []
    assert float(f"{record['outcome']['largest_gap']:.2g}") == record["outcome"]["largest_gap"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evidence"]
    assert verify(tmp_path).exit == 0


def test_private_refusals_keep_no_text(tmp_path: Path) -> None:
    error = UserError("cannot do 'Ada Lovelace'")
    with pytest.raises(UserError):
        goes_wrong(tmp_path, error, request={"prompt": "Ada Lovelace"}, private=SecretKey(b"s" * 32))
    assert b"Lovelace" not in everything_in(tmp_path)
    assert sorted(only(tmp_path)["digests"]) == ["error", "input"]


# redaction, retention


def test_redaction_takes_texts_and_files(explanation: Explanation, tmp_path: Path) -> None:
    run = save(explanation, tmp_path / "run")
    id = read_log(run)[0][0].id
    bundle = export_bundle(run, id, tmp_path / "before.zip")
    assert verify(bundle).exit == 0
    redact(run, id, reason="asked by the person", by="dpo", signer=KEY)
    assert b"Lovelace" not in everything_in(run)
    assert b"asked by the person" in everything_in(run)
    verdict = verify(run, key=KEY.public_key())
    assert (verdict.exit, verdict.findings) == (0, [])
    after = verify(export_bundle(run, id, tmp_path / "after.zip"), key=KEY.public_key())
    assert (after.exit, after.findings) == (0, [])


def test_what_is_gone_without_a_record_that_says_so_is_tampering(explanation: Explanation, tmp_path: Path) -> None:
    run = save(explanation, tmp_path / "run")
    (run / "evidence" / "content.jsonl").write_bytes(b"")
    assert "the text that it names was changed or removed" in str(verify(run).first_bad)
    (run / "report.html").unlink()
    assert any("report.html is missing" in finding.what for finding in verify(run).findings)


def test_an_interrupted_redaction_is_finished_by_the_next(
    explanation: Explanation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = save(explanation, tmp_path / "run")
    id = read_log(run)[0][0].id

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("llmxai.evidence.redaction._drop_texts", interrupted)
        with pytest.raises(KeyboardInterrupt):
            redact(run, id, reason="asked")
    left = verify(run)
    assert left.exit == 0
    assert any("still stored" in finding.what for finding in left.findings)
    redact(run, id, reason="again")
    assert b"Lovelace" not in everything_in(run)
    assert verify(run).findings == []


def test_prune_takes_what_is_old_and_keeps_the_chain(explanation: Explanation, tmp_path: Path) -> None:
    old = make_run(tmp_path, 3, ended="2020-01-01T00:00:00.000Z")
    attempt = begin(tmp_path / "evidence", signer=KEY)
    explained(attempt, explanation)
    receipt = prune(tmp_path, older_than=timedelta(days=365), by="ops", signer=KEY)
    assert receipt is not None
    assert sorted(json.loads(read_log(tmp_path)[-1][1])["link"]["records"]) == sorted(old)
    assert not list((tmp_path / "files").iterdir())
    assert b"Lovelace" in everything_in(tmp_path)  # young enough
    assert verify(tmp_path, key=KEY.public_key()).findings == []
    assert prune(tmp_path, older_than=timedelta(days=365)) is None


# finding, recomputing


def test_find(explanation: Explanation, tmp_path: Path) -> None:
    run = save(explanation, tmp_path / "runs" / "a")
    log = read_log(run)
    id = log[0][0].id
    assert find(log, id[:12])[0].id == id
    assert find_run(id, tmp_path / "runs") == run
    for wrong in (id[:4], "x" * 20):
        with pytest.raises(EvidenceError, match="no record has"):
            find(log, wrong)
    with pytest.raises(EvidenceError, match="no log below"):
        find_run("x" * 20, tmp_path / "runs")
    with pytest.raises(EvidenceError, match="there is no record"):
        read_log(tmp_path)


def test_recomputing_gives_the_same(explanation: Explanation, loaded: LoadedModel, tmp_path: Path) -> None:
    run = save(explanation, tmp_path / "run")
    found = recompute(run, read_log(run)[0][0].id, model=loaded)
    assert (found.outcome, found.exit, found.changed_statuses) == ("within", 0, 0)
    assert found.to_json()["is_verification"] is False
    assert max(each.relative for each in found.maps.values()) <= 1e-4


def test_another_result_is_outside_and_another_answer_incomparable(explanation: Explanation) -> None:
    document, maps = to_json(explanation), to_maps(explanation)
    shifted = {name: values + np.float32(0.01 * np.abs(values).max()) for name, values in maps.items()}
    found = compare(document, maps, document, shifted)
    assert (found.outcome, found.exit) == ("outside", 1)
    assert all(each.relative == pytest.approx(0.01, rel=1e-3) for each in found.maps.values())
    model = {**document["environment"]["model"], "dtype": "bfloat16", "digest": "another"}
    elsewhere = {**document, "environment": {**document["environment"], "model": model}}
    wide = compare(document, maps, elsewhere, shifted)
    assert (wide.outcome, wide.tolerance) == ("within", 0.5)
    assert [text.split(":")[0] for text in wide.differences] == ["model digest", "dtype"]
    tokens = [{**token, "id": token["id"] + (token["index"] == 5)} for token in document["tokens"]]
    other = compare(document, maps, {**document, "tokens": tokens}, maps)
    assert (other.outcome, other.exit, other.answer) == ("incomparable", 2, "differs at token 5")


def test_nothing_to_recompute(explanation: Explanation, loaded: LoadedModel, tmp_path: Path) -> None:
    with recording(tmp_path / "evidence", private=SecretKey(b"s" * 32)) as attempt:
        save(explanation, tmp_path, attempt=attempt)
    with pytest.raises(EvidenceError, match="nothing to replay"):
        recompute(tmp_path, attempt.id, model=loaded)


# what the page says about its record


def test_the_page_names_its_record_and_the_command(explanation: Explanation, tmp_path: Path) -> None:
    with recording(tmp_path / "run" / "evidence", signer=KEY) as attempt:
        run = save(explanation, tmp_path / "run", attempt=attempt)
    page = (run / "report.html").read_text(encoding="utf-8")
    for text in (attempt.id, f"llmxai verify {run} --pubkey KEY.pub", key_id(KEY.public_key())):
        assert text in page
    for artefact in only(run)["artefacts"]:
        assert (artefact["sha256"] in page) == (artefact["path"] != "report.html")


def test_an_unsigned_page_says_so(explanation: Explanation, tmp_path: Path) -> None:
    run = save(explanation, tmp_path / "run")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "unsigned: no key vouches for this record" in page
    assert f"llmxai verify {run}<" in page.replace("&#34;", "").replace("\n", "")


def test_pages_made_again_say_the_same_until_someone_reviews(explanation: Explanation, tmp_path: Path) -> None:
    run = save(explanation, tmp_path / "run")
    again = rebuild(run, provenance=provenance_of)
    assert again.page == run / "report.html"
    assert verify(run).findings == []
    id = read_log(run)[0][0].id
    review(run, id, decision="approved", by="r7")
    reviewed = rebuild(run, provenance=provenance_of)
    assert reviewed.page == run / "report.rebuilt.html"
    assert "approved by r7" in reviewed.page.read_text(encoding="utf-8")
    assert verify(run).exit == 0
    save(explanation, run, replace=True)
    assert not reviewed.page.exists()


def test_provenance_of_a_record_in_a_run_and_of_none(explanation: Explanation, tmp_path: Path) -> None:
    run = tmp_path / "run"
    attempt = begin(run / "evidence")
    save(explanation, run / "records" / "one", attempt=attempt)
    told = provenance_of(run / "records" / "one")
    assert told is not None
    assert (told["record"], told["verify"]) == (attempt.id, f"llmxai verify {run}")
    of_run = provenance_of(run)
    assert of_run is not None
    assert (of_run["records"], of_run["last record"], of_run["verify"]) == (1, attempt.id, f"llmxai verify {run}")
    assert of_run["signature"] == "unsigned: no key vouches for this log"
    assert provenance_of(tmp_path) is None


def test_the_provenance_of_every_record_of_a_run_from_one_pass(explanation: Explanation, tmp_path: Path) -> None:
    run = tmp_path / "run"
    folders = [run / "records" / name for name in ("one", "two", "one")]  # explained again: the newest record counts
    with open_log(run / "evidence", signer=KEY) as log:
        for folder in folders:
            save(explanation, folder, replace=True, attempt=begin(log), run=run)
    for entry, _ in read_log(run)[1:]:
        review(run, entry.id, decision="approved", by="r7")
    of = provenances_of(run)
    for folder in (*folders, run, run / "records" / "none"):
        assert of(folder) == provenance_of(folder)
    one = of(folders[0])
    assert one is not None
    assert one["record"] == read_log(run)[2][0].id
    assert len(one["reviews"]) == 1
    assert records_of(run) == {name: read_log(run)[at][0].id for name, at in (("one", 2), ("two", 1))}


def test_a_replay_takes_the_settings_of_the_record(loaded: LoadedModel, tmp_path: Path) -> None:
    other = explain(
        loaded,
        MESSAGES,
        decoding=Decoding(max_new_tokens=2),
        settings=Settings(
            gradients=IntegratedGradients(max_nodes=8),
            rollout=AttentionRollout(variant="sink_free_rollout"),
            removal=Removal(operator="mean", units="token", subsets=5, seed=3),
        ),
    )
    save(other, tmp_path / "run")
    found = recompute(tmp_path / "run", only(tmp_path / "run")["id"], model=loaded)
    assert found.outcome == "within"
    assert {"leave_one_out", "rollout_variant"} <= set(found.maps)
    assert max(each.relative for each in found.maps.values()) < 1e-6
    redact(tmp_path / "run", only(tmp_path / "run")["id"], reason="asked")
    with pytest.raises(EvidenceError, match="redacted or pruned"):
        recompute(tmp_path / "run", read_log(tmp_path / "run")[0][0].id, model=loaded)
