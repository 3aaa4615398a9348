"""Checkpoints and Merkle proofs: the signed statements, and proofs that a record or an earlier log is part of one.

A checkpoint is an in-toto Statement about the log in a DSSE envelope, signed with Ed25519 or unsigned
(https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md, https://github.com/secure-systems-lab/dsse). Its
root is that of RFC 6962 (https://www.rfc-editor.org/rfc/rfc6962, section 2.1).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from llmxai.evidence.verifier.lines import UnreadableError, parse_json

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:llmxai:checkpoint:1"


@dataclass(frozen=True)
class Checkpoint:
    """The statement of one envelope: the first `size` records of log `log` have this Merkle root."""

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
    """By the clock of the machine that signed; not attested by anyone else."""
    keyid: str | None
    """The key named in the statement; None if unsigned."""
    signature: bytes
    signed: bytes
    """The signed bytes (DSSE's pre-authentication encoding)."""

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
    """One envelope. Raises ValueError for anything but the exact bytes that llmxai writes, and UnreadableError for
    bytes that llmxai could not have written."""
    try:
        envelope = parse_json(line)
        payload = base64.b64decode(envelope["payload"], validate=True)
        statement = parse_json(payload)
        said = statement["predicate"]
        signer = (envelope["signatures"] or [{"keyid": None, "sig": ""}])[0]
        signature = base64.b64decode(signer["sig"], validate=True)
        if said["keyid"] != signer["keyid"]:
            raise ValueError("it is not signed by the key that its statement names")
        names = ("log", "root", "head", "time")
        texts = [*(said[name] for name in names), statement["subject"][0]["digest"]["sha256"]]
        texts += [text for text in (said["prev"], said["keyid"]) if text is not None]
        if type(said["size"]) is not int or not all(isinstance(text, str) for text in texts):
            raise ValueError("a field has another type")
        again = [{"keyid": signer["keyid"], "sig": base64.b64encode(signature).decode()}] if signature else []
        form = {"payload": base64.b64encode(payload).decode(), "payloadType": PAYLOAD_TYPE, "signatures": again}
        kinds = (statement["_type"], statement["predicateType"])
        if compact(form) != line or kinds != (STATEMENT_TYPE, PREDICATE_TYPE):
            raise ValueError("not in the form that llmxai writes")
        return Checkpoint(
            **{name: said[name] for name in names},
            size=said["size"],
            prefix=statement["subject"][0]["digest"]["sha256"],
            prev=said["prev"],
            keyid=said["keyid"],
            signature=signature,
            signed=pre_authentication_encoding(payload),
        )
    except UnreadableError as error:
        raise UnreadableError(f"not a checkpoint: it {error}") from error
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise ValueError(f"not a checkpoint ({error})") from error


def read_public_key(pem: bytes) -> Ed25519PublicKey:
    """Raises ValueError for anything but an Ed25519 public key in PEM."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError(f"not a public key in PEM ({error})") from error
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("a public key, but not an Ed25519 one")
    return key


def key_id(key: Ed25519PublicKey) -> str:
    """SHA-256 of the key in DER: `openssl pkey -pubin -in KEY.pub -outform DER | sha256sum`."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest()


def leaf_hash(leaf: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


class Frontier:
    """The tree hash of a growing list in O(log n) memory: the roots of its complete subtrees, largest first."""

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes] = []

    def add(self, leaf: bytes) -> None:
        node, full = leaf_hash(leaf), self.size
        while full & 1:
            node, full = node_hash(self._peaks.pop(), node), full >> 1
        self._peaks.append(node)
        self.size += 1

    def root(self) -> bytes:
        if not self._peaks:
            return hashlib.sha256(b"").digest()
        root = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            root = node_hash(peak, root)
        return root


def tree_hash(hashes: Sequence[bytes]) -> bytes:
    """The root over leaf hashes."""
    if not hashes:
        return hashlib.sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    k = _split(len(hashes))
    return node_hash(tree_hash(hashes[:k]), tree_hash(hashes[k:]))


def inclusion_proof(hashes: Sequence[bytes], index: int) -> list[bytes]:
    """The path of leaf `index` among the leaf hashes."""
    if len(hashes) <= 1:
        return []
    k = _split(len(hashes))
    if index < k:
        return [*inclusion_proof(hashes[:k], index), tree_hash(hashes[k:])]
    return [*inclusion_proof(hashes[k:], index - k), tree_hash(hashes[:k])]


def consistency_proof(hashes: Sequence[bytes], old: int) -> list[bytes]:
    """The proof that the first `old` leaf hashes form the tree of that size; 0 < old <= len(hashes)."""

    def below(part: Sequence[bytes], m: int, whole: bool) -> list[bytes]:
        if m == len(part):
            return [] if whole else [tree_hash(part)]
        k = _split(len(part))
        if m <= k:
            return [*below(part[:k], m, whole), tree_hash(part[k:])]
        return [*below(part[k:], m - k, False), tree_hash(part[:k])]

    return below(hashes, old, True)


def is_included(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether `path` proves that `leaf` is at `index` of the `size` leaves under `root`."""
    if not 0 <= index < size:
        return False
    first, last, node = index, size - 1, leaf_hash(leaf)
    for step in path:
        if last == 0:
            return False
        if first & 1 or first == last:
            node = node_hash(step, node)
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            node = node_hash(node, step)
        first, last = first >> 1, last >> 1
    return last == 0 and node == root


def is_consistent(old: int, new: int, path: Sequence[bytes], old_root: bytes, new_root: bytes) -> bool:
    """Whether `path` proves that the tree of `new` leaves begins with the tree of `old` leaves."""
    if not 0 < old <= new:
        return False
    if old == new:
        return not path and old_root == new_root
    steps = [old_root, *path] if old & (old - 1) == 0 else list(path)
    if not steps:
        return False
    first, last = old - 1, new - 1
    while first & 1:
        first, last = first >> 1, last >> 1
    was = now = steps[0]
    for step in steps[1:]:
        if last == 0:
            return False
        if first & 1 or first == last:
            was, now = node_hash(step, was), node_hash(step, now)
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            now = node_hash(now, step)
        first, last = first >> 1, last >> 1
    return last == 0 and was == old_root and now == new_root


def _split(n: int) -> int:
    """The largest power of two below n."""
    return 1 << (n - 1).bit_length() - 1
