"""A checkpoint: an in-toto Statement about the log in a DSSE envelope, signed with Ed25519 or by nobody.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md, https://github.com/secure-systems-lab/dsse
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:llmxai:checkpoint:1"


@dataclass(frozen=True)
class Checkpoint:
    """What one envelope says: the first `size` records of log `log` have this Merkle root."""

    log: str
    size: int
    root: str
    head: str
    """Hash of the last of those records."""
    prefix: str
    """SHA-256 of the first `size` lines of log.jsonl."""
    prev: str | None
    """SHA-256 of the checkpoint before it in the file; None for the first."""
    time: str
    """By the clock of the machine that signed; nobody else vouches for it."""
    keyid: str | None
    """The key that the statement says it is signed with; None for an unsigned one."""
    signature: bytes
    signed: bytes
    """The bytes that the signature is over (DSSE's pre-authentication encoding)."""

    def is_signed_by(self, key: Ed25519PublicKey) -> bool:
        try:
            key.verify(self.signature, self.signed)
        except InvalidSignature:
            return False
        return True


def compact(value: Any) -> bytes:
    """JSON with sorted keys and no spaces; for ASCII keys and small integers that is RFC 8785's form."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def pre_authentication_encoding(payload: bytes) -> bytes:
    kind = PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def read_checkpoint(line: bytes) -> Checkpoint:
    """One envelope. Raises ValueError for anything but the exact bytes that llmxai writes."""
    try:
        envelope = json.loads(line)
        payload = base64.b64decode(envelope["payload"], validate=True)
        statement = json.loads(payload)
        said = statement["predicate"]
        signer = (envelope["signatures"] or [{"keyid": None, "sig": ""}])[0]
        signature = base64.b64decode(signer["sig"], validate=True)
        again = [{"keyid": signer["keyid"], "sig": base64.b64encode(signature).decode()}] if signature else []
        form = {"payload": base64.b64encode(payload).decode(), "payloadType": PAYLOAD_TYPE, "signatures": again}
        if compact(form) != line or (statement["_type"], statement["predicateType"]) != (
            STATEMENT_TYPE,
            PREDICATE_TYPE,
        ):
            raise ValueError("not in the form that llmxai writes")
        if said["keyid"] != signer["keyid"]:
            raise ValueError("it is not signed by the key that its statement names")
        return Checkpoint(
            log=str(said["log"]),
            size=int(said["size"]),
            root=str(said["root"]),
            head=str(said["head"]),
            prefix=str(statement["subject"][0]["digest"]["sha256"]),
            prev=said["prev"],
            time=str(said["time"]),
            keyid=said["keyid"],
            signature=signature,
            signed=pre_authentication_encoding(payload),
        )
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise ValueError(f"not a checkpoint ({error})") from error


def read_public_key(pem: bytes) -> Ed25519PublicKey:
    """Raises ValueError for anything but an Ed25519 public key in PEM."""
    try:
        key = serialization.load_pem_public_key(pem)
    except ValueError as error:
        raise ValueError(f"not a public key in PEM ({error})") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("a public key, but not an Ed25519 one")
    return key


def key_id(key: Ed25519PublicKey) -> str:
    """SHA-256 of the key in DER: `openssl pkey -pubin -in KEY.pub -outform DER | sha256sum`."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest()
