"""The commands of evidence, as a user runs them: what they print and how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ended import Run
from logs import make_run

from llmxai import cli


@pytest.fixture
def ids(tmp_path: Path) -> list[str]:
    return make_run(tmp_path / "runs" / "a", 4, signer=None)


def test_a_whole_life(run: Run, ids: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("verify", "runs/a").out == "whole: runs/a, 4 records, unsigned: no key vouches for it\n"
    assert "chmod" not in run("keys", "new", "k").out
    assert (tmp_path / "k").stat().st_mode & 0o777 == 0o600
    assert run("verify", "runs/a", "--pubkey", "k.pub").code == 2
    monkeypatch.setenv("LLMXAI_SIGNING_KEY_FILE", str(tmp_path / "k"))
    assert run("evidence", "seal", "runs/a").out.startswith("sealed: 4 records, signed")
    (tmp_path / "held.json").write_bytes((tmp_path / "runs/a/evidence/checkpoints.jsonl").read_bytes())
    assert "(signed)" in run("review", "sign", ids[1], "--decision", "approved", "--by", "r1", "--note", "fine").out
    assert "(signed)" in run("redact", ids[2], "--reason", "asked").out
    whole = run("verify", "runs/a", "--pubkey", "k.pub", "--checkpoint", "held.json")
    assert (whole.code, whole.out.startswith("whole: runs/a, 6 records, records 0 to 5 signed by key")) == (0, True)
    proof = json.loads(run("prove", ids[0]).out)
    assert (proof["index"], proof["size"]) == (0, 6)
    assert run("export", ids[1], "--out", "b.zip").out == "bundle: b.zip\n"
    assert run("verify", "b.zip", "--pubkey", "k.pub").out.startswith("whole: b.zip, 2 records, signed by key")
    assert run("consistency", "held.json", "--run", "runs/a", "--out", "c.json").code == 0
    assert run("verify", "c.json", "--pubkey", "k.pub").code == 0
    assert run("evidence", "prune", "runs/a", "--older-than", "0d").out.startswith("pruned: record 6")
    assert run("verify", "runs/a", "--pubkey", "k.pub").code == 0
    assert "Nothing in runs/a is older" in run("evidence", "prune", "runs/a", "--older-than", "0d").out


def test_one_byte_changed_names_the_record_and_ends_with_1(run: Run, ids: list[str], tmp_path: Path) -> None:
    path = tmp_path / "runs/a/files/2.txt"
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    ended = run("verify", "runs/a")
    assert ended.code == 1
    assert ended.out.splitlines()[0].startswith("tampered: runs/a")
    assert ended.out.splitlines()[1].startswith(f"tampered: record 2 ({ids[2]}): files/2.txt was changed")
    told = json.loads(run("verify", "runs/a", "--json").out)
    assert (told["verdict"], told["exit"], told["first_bad"]["record"]) == ("tampered", 1, ids[2])


def test_a_bundle_that_was_changed(run: Run, ids: list[str], tmp_path: Path) -> None:
    import zipfile

    run("export", ids[1], "--out", "b.zip")
    with zipfile.ZipFile("b.zip") as bundle:
        members = {name: bundle.read(name) for name in bundle.namelist()}
    for name in ("record.json", "content.json", "artefacts/files/1.txt", "checkpoint.json", "proof.json"):
        changed = members[name].replace(b"1", b"2", 1)
        assert changed != members[name]
        with zipfile.ZipFile("changed.zip", "w") as bundle:
            for other, data in members.items():
                bundle.writestr(other, changed if other == name else data)
        assert run("verify", "changed.zip").code == 1, name
    with zipfile.ZipFile("changed.zip", "w") as bundle:
        for other, data in members.items():
            bundle.writestr(
                other, data.replace(b"llmxai.bundle/2", b"llmxai.bundle/9") if other == "proof.json" else data
            )
    assert run("verify", "changed.zip").code == 2
    (tmp_path / "no.zip").write_bytes(b"PK no")
    assert run("verify", "no.zip").code == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["verify", "runs/a", "--pubkey", "missing"], "missing: no Ed25519 public key"),
        (["verify", "runs/a", "--checkpoint", "missing"], "No checkpoint can be read"),
        (["prove", "x" * 20], "no log below runs holds such a record"),
        (["redact", "x" * 20, "--reason", "r", "--run", "runs/a"], "no record has an id that starts with it"),
        (["evidence", "prune", "runs/a", "--older-than", "soon"], "--older-than 'soon': expected a number"),
        (["evidence", "seal", "nowhere"], "there is no record"),
        (["consistency", "missing", "--run", "runs/a"], "missing: no checkpoint can be read"),
        (["keys", "show", "missing"], "missing: no Ed25519 public key"),
        (["replay", "x" * 20, "--run", "runs/a"], "no record has an id"),
        (
            ["review", "sign", "x" * 20, "--decision", "d", "--by", "b", "--run", "runs/a", "--key", "missing"],
            "missing: the key cannot be read",
        ),
    ],
)
def test_a_users_mistake_is_one_paragraph(run: Run, ids: list[str], arguments: list[str], words: str) -> None:
    assert ids
    ended = run(*arguments)
    assert ended.code == 2
    assert (ended.out, "Traceback" in ended.err) == ("", False)
    assert words in ended.err
    assert len([line for line in ended.err.splitlines() if line.startswith("llmxai: ") and words in line]) == 1


def test_where_nothing_lies_nothing_can_be_told(run: Run, tmp_path: Path) -> None:
    assert run("verify", "nowhere").code == 2
    (tmp_path / "note.txt").write_text("hello")
    assert run("verify", "note.txt").code == 2
    (tmp_path / "list.json").write_text("[]")
    assert run("verify", "list.json").code == 1


def test_every_command_has_help(run: Run) -> None:
    import typer

    group = typer.main.get_command(cli.app)
    for name in ("verify", "prove", "consistency", "export", "redact", "replay"):
        command = group.commands[name]
        assert command.help
        assert all(each.help for each in command.params if each.name not in ("help", "id"))
    assert run("keys", "--help").code == run("evidence", "--help").code == run("review", "--help").code == 0
