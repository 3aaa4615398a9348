"""Envelopes against securesystemslib in both directions, and keys."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from logs import KEY, OTHER_KEY, make_run
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from llmxai.errors import KeyFileError
from llmxai.evidence.keys import new_secret_key, new_signing_key, public_key, public_pem, secret_key, signing_key
from llmxai.evidence.sealing import checkpoint
from llmxai.evidence.verifier.proof import (
    PAYLOAD_TYPE,
    compact,
    key_id,
    pre_authentication_encoding,
    read_checkpoint,
    read_public_key,
)

SAID = {"log": "a-log", "size": 3, "root": "aa", "head": "bb", "prefix": "cc", "prev": None}
PUBLIC = KEY.public_key()


def their_key(keyid: str | None = None) -> SSlibKey:
    return SSlibKey.from_crypto(PUBLIC, keyid=keyid or key_id(PUBLIC))


def test_the_encoding_of_the_dsse_specification() -> None:
    """The example of the protocol document, with our payload type in its place."""
    assert pre_authentication_encoding(b"hello world") == b"DSSEv1 28 application/vnd.in-toto+json 11 hello world"


def test_securesystemslib_verifies_ours() -> None:
    envelope = Envelope.from_dict(json.loads(checkpoint(**SAID, signer=KEY)))
    assert list(envelope.verify([their_key()], 1)) == [key_id(PUBLIC)]
    envelope.payload += b" "
    with pytest.raises(VerificationError):
        envelope.verify([their_key()], 1)


def test_we_verify_theirs() -> None:
    statement = json.loads(base64.b64decode(json.loads(checkpoint(**SAID, signer=KEY))["payload"]))
    envelope = Envelope(json.dumps(statement, indent=3).encode(), PAYLOAD_TYPE, {})
    envelope.sign(CryptoSigner(KEY, their_key()))
    point = read_checkpoint(compact(envelope.to_dict()))
    assert point.is_signed_by(PUBLIC)
    assert not point.is_signed_by(OTHER_KEY.public_key())
    assert (point.log, point.size, point.root, point.head, point.prefix) == ("a-log", 3, "aa", "bb", "cc")


def test_the_statement_is_in_toto() -> None:
    line = checkpoint(**SAID, signer=KEY)
    statement = json.loads(base64.b64decode(json.loads(line)["payload"]))
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == [{"name": "log.jsonl", "digest": {"sha256": "cc"}}]
    assert statement["predicateType"] == "urn:llmxai:checkpoint:1"
    assert sorted(statement["predicate"]) == ["head", "keyid", "log", "prev", "root", "size", "time"]


def test_an_unsigned_envelope_carries_no_signature() -> None:
    line = checkpoint(**SAID, signer=None)
    assert json.loads(line)["signatures"] == []
    point = read_checkpoint(line)
    assert point.keyid is None
    assert not point.is_signed_by(PUBLIC)


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"{}", b'{"payload":"","payloadType":"","signatures":[]}', b"\xff", b'{"payload":5}']
)
def test_what_is_no_checkpoint(line: bytes) -> None:
    with pytest.raises(ValueError, match="not a checkpoint"):
        read_checkpoint(line)


def test_openssl_verifies_ours(tmp_path: Path) -> None:
    """The recipe of docs/verify.md."""
    make_run(tmp_path, 2)
    line = (tmp_path / "evidence/checkpoints.jsonl").read_bytes().splitlines()[-1]
    envelope = json.loads(line)
    payload = base64.b64decode(envelope["payload"])
    (tmp_path / "signed").write_bytes(b"DSSEv1 28 %b %d %b" % (PAYLOAD_TYPE.encode(), len(payload), payload))
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    (tmp_path / "k.pub").write_bytes(public_pem(PUBLIC))
    command = "openssl pkeyutl -verify -pubin -inkey k.pub -rawin -in signed -sigfile sig"
    ended = subprocess.run(command.split(), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "Verified Successfully" in ended.stdout


# keys


def test_a_new_key_is_only_its_owners(tmp_path: Path) -> None:
    public = new_signing_key(tmp_path / "k")
    assert stat.S_IMODE((tmp_path / "k").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "k.pub").stat().st_mode) & 0o022 == 0
    private = signing_key(tmp_path / "k")
    assert private is not None
    ids = {
        key_id(key)
        for key in (public, private.public_key(), public_key(tmp_path / "k.pub"), public_key(tmp_path / "k"))
    }
    assert len(ids) == 1
    for path in ("k", "k.pub"):
        with pytest.raises(KeyFileError, match="exists and is left alone"):
            new_signing_key(tmp_path / path.removesuffix(".pub"))
    with pytest.raises(KeyFileError, match="exists and is left alone"):
        new_secret_key(tmp_path / "k")


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    new_signing_key(tmp_path / "k")
    (tmp_path / "k").chmod(0o640)
    with pytest.raises(KeyFileError, match=r"others may read it \(mode 640\).*chmod 600"):
        signing_key(tmp_path / "k")
    with pytest.raises(KeyFileError, match="is a folder; expected a key file") as folder:
        signing_key(tmp_path)
    assert "chmod" not in str(folder.value)


def test_keys_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert signing_key() is None  # and none is made
    new_signing_key(tmp_path / "k")
    monkeypatch.setenv("LLMXAI_SIGNING_KEY_FILE", str(tmp_path / "k"))
    by_file = signing_key()
    monkeypatch.delenv("LLMXAI_SIGNING_KEY_FILE")
    monkeypatch.setenv("LLMXAI_SIGNING_KEY", (tmp_path / "k").read_text())
    by_text = signing_key()
    assert by_file is not None
    assert by_text is not None
    assert key_id(by_file.public_key()) == key_id(by_text.public_key())


def test_what_is_no_signing_key(tmp_path: Path) -> None:
    curve = generate_private_key(SECP256R1())
    pem = curve.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for name, data, words in (("a", b"no key", "not an unencrypted private key"), ("b", pem, "expected Ed25519")):
        path = tmp_path / name
        path.write_bytes(data)
        path.chmod(0o600)
        with pytest.raises(KeyFileError, match=words):
            signing_key(path)
    for missing in ("missing", "n" * 300):
        with pytest.raises(KeyFileError, match=r"cannot be read.*`llmxai keys new FILE` creates a key"):
            signing_key(tmp_path / missing)
    with pytest.raises(KeyFileError, match="no Ed25519 public key"):
        public_key(tmp_path / "missing")
    other = curve.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(ValueError, match="not an Ed25519 one"):
        read_public_key(other)


def test_the_secret_of_private_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyFileError, match="--private needs a secret key"):
        secret_key()
    made = new_secret_key(tmp_path / "s")
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
    assert secret_key(tmp_path / "s") == made
    assert made.value.hex() not in repr(made)
    for text, words in (("zz", "not a secret in hex"), ("00" * 16, "holds 16 bytes")):
        monkeypatch.setenv("LLMXAI_PRIVATE_KEY", text)
        with pytest.raises(KeyFileError, match=words):
            secret_key()


@pytest.fixture(autouse=True)
def no_keys_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LLMXAI_")]:
        monkeypatch.delenv(name)
