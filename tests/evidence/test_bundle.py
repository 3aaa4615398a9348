"""Bundles are closed: each forgery is refused by the command, by the verifier alone and by the steps by hand."""

from __future__ import annotations

import hashlib
import json
import re
import resource
import shutil
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from logs import KEY, OTHER_KEY, make_record, make_run

from llmxai.evidence.bundle import export_bundle
from llmxai.evidence.keys import public_pem
from llmxai.evidence.log import open_log
from llmxai.evidence.record import File
from llmxai.evidence.redaction import review
from llmxai.evidence.verifier.bundle import README, check_bundle
from llmxai.evidence.verifier.lines import Verification

VERIFIER = Path(__file__).parents[2] / "llmxai" / "evidence" / "verifier"
DOCS = Path(__file__).parents[2] / "docs" / "verify.md"
Members = list[tuple[str, bytes]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a record in the middle of a signed log, with a text, a file and two reviews; and one of another."""
    folder = tmp_path_factory.mktemp("bundle")
    ids = make_run(folder / "run", 5)
    for by in ("r1", "r2"):
        review(folder / "run", ids[2], decision="approved", by=by, signer=KEY)
    export_bundle(folder / "run", ids[2], folder / "b.zip")
    export_bundle(folder / "run", ids[1], folder / "other.zip")
    (folder / "K").write_bytes(public_pem(KEY.public_key()))
    return folder


def members_of(bundle: Path) -> Members:
    with zipfile.ZipFile(bundle) as opened:
        return [(name, opened.read(name)) for name in opened.namelist()]


def pack(members: Members, out: Path, *, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(out, "w", method) as bundle:
        for name, data in members:
            bundle.writestr(name, data)
    return out


def checked(bundle: Path) -> Verification:
    return check_bundle(bundle, key=KEY.public_key())


def test_what_an_export_holds(exported: Path) -> None:
    verdict = checked(exported / "b.zip")
    assert (verdict.exit, verdict.findings, verdict.records) == (0, [], 3)
    names = [name for name, _ in members_of(exported / "b.zip")]
    linked = [name for name in names if name.startswith("linked/")]
    assert names == [
        *("README.txt", "record.json", "content.json", "artefacts/files/2.txt"),
        *(*linked, "proof.json", "checkpoint.json"),
    ]
    assert len(linked) == 2
    again = export_bundle(exported / "run", json.loads(members_of(exported / "b.zip")[1][1])["id"], exported / "a.zip")
    assert again.read_bytes() == (exported / "b.zip").read_bytes()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_packed_again_with_the_same_members_it_is_the_same(exported: Path, tmp_path: Path, method: int) -> None:
    assert checked(pack(members_of(exported / "b.zip"), tmp_path / "b.zip", method=method)).findings == []


# forged by what is in it: each is a change of the members


def replaced(name: str, change: Callable[[bytes], bytes]) -> Callable[[Members, Path], Members]:
    def forge(members: Members, _folder: Path) -> Members:
        assert any(each == name for each, _ in members)
        return [(each, change(data) if each == name else data) for each, data in members]

    return forge


def inserted(name: str, data: bytes = b"<p>approved</p>", *, at: int = 4) -> Callable[[Members, Path], Members]:
    return lambda members, _folder: [*members[:at], (name, data), *members[at:]]


def proof_changed(change: Callable[[dict], object]) -> Callable[[Members, Path], Members]:
    def changed(data: bytes) -> bytes:
        proof = json.loads(data)
        change(proof)
        return json.dumps(proof).encode()

    return replaced("proof.json", changed)


def another_record_with_the_true_one_aside(members: Members, _folder: Path) -> Members:
    """What a person reads is forged; the proof is of the true record, under another name."""
    true = dict(members)["record.json"]
    forged = true.replace(b'"kind":"explanation"', b'"kind":"exploration"')
    renamed = [(name, forged if name == "record.json" else data) for name, data in members]
    shown = proof_changed(lambda proof: proof["records"][0].update(file="true.json"))(renamed, _folder)
    return [*shown[:2], ("true.json", true), *shown[2:]]


def the_proof_is_of_a_linked_record(members: Members, folder: Path) -> Members:
    """The subject is named last, so that a linked record is what the artefacts would be looked up in."""
    return proof_changed(lambda proof: proof["records"].reverse())(members, folder)


def the_record_of_another_bundle(members: Members, folder: Path) -> Members:
    other = dict(members_of(folder / "other.zip"))
    return [(name, other.get(name, data) if name == "record.json" else data) for name, data in members]


def the_record_and_proof_of_another_bundle(members: Members, folder: Path) -> Members:
    other = dict(members_of(folder / "other.zip"))
    taken = {name: other[name] for name in ("record.json", "proof.json", "checkpoint.json")}
    return [(name, taken.get(name, data)) for name, data in members if not name.startswith("linked/")]


def a_record_linked_that_is_not(members: Members, folder: Path) -> Members:
    """A true record of the log that has nothing to do with this one, put among its reviews."""
    other = dict(members_of(folder / "other.zip"))
    step = json.loads(other["proof.json"])["records"][0]
    name = f"linked/{json.loads(other['record.json'])['id']}.json"
    more = proof_changed(lambda proof: proof["records"].append({**step, "file": name}))(members, folder)
    return [*more[:6], (name, other["record.json"]), *more[6:]]


def reviews_under_each_others_names(members: Members, _folder: Path) -> Members:
    one, two = (i for i, (name, _) in enumerate(members) if name.startswith("linked/"))
    members = list(members)
    members[one], members[two] = (members[one][0], members[two][1]), (members[two][0], members[one][1])
    return members


def signed_by_another(_members: Members, folder: Path) -> Members:
    make_run(folder / "forged", 3, signer=OTHER_KEY)
    id = json.loads((folder / "forged/evidence/log.jsonl").read_bytes().splitlines()[1])["record"]["id"]
    return members_of(export_bundle(folder / "forged", id, folder / "forged.zip"))


FORGED = {
    "a forged record": replaced("record.json", lambda data: data.replace(b'"kind":"explanation"', b'"kind":"expl"')),
    "a forged record, the true one aside": another_record_with_the_true_one_aside,
    "a linked record as the subject": the_proof_is_of_a_linked_record,
    "the record of another": the_record_of_another_bundle,
    "record and proof of another": the_record_and_proof_of_another_bundle,
    "a linked record that does not refer to it": a_record_linked_that_is_not,
    "reviews under each other's names": reviews_under_each_others_names,
    "signed by another key": signed_by_another,
    "another file": replaced("artefacts/files/2.txt", lambda data: data + b"!"),
    "another text": replaced("content.json", lambda data: data.replace(b"ja", b"no")),
    "another salt": replaced("content.json", lambda data: data.replace(b'"salt":"', b'"salt":"00')),
    "another readme": replaced("README.txt", lambda data: data.replace(b"Take the public", b"We gave you the")),
    "another index": proof_changed(lambda proof: proof["records"][0].update(index=3)),
    "another path": proof_changed(lambda proof: proof["records"][0]["path"].reverse()),
    "a shorter path": proof_changed(lambda proof: proof["records"][0]["path"].pop()),
    "an artefact put in": inserted("artefacts/report.html"),
    "a page put in": inserted("report.html", at=0),
    "a record put in": inserted("linked/20260101T000000Z-0000000000000000.json", b"{}"),
    "a note at the end": inserted("NOTE.txt", at=99),
}


@pytest.mark.parametrize("form", FORGED)
def test_a_forged_bundle_is_refused_by_all_three(form: str, exported: Path, tmp_path: Path) -> None:
    for name in ("other.zip", "K"):
        shutil.copy(exported / name, tmp_path / name)
    bundle = pack(FORGED[form](members_of(exported / "b.zip"), tmp_path), tmp_path / "b.zip")
    verdict = checked(bundle)
    assert verdict.exit == (2 if form == "signed by another key" else 1), verdict.to_text()
    ended = alone(bundle, "--pubkey", tmp_path / "K", "--json")
    assert json.loads(ended.stdout) == verdict.to_json()
    assert ended.returncode == verdict.exit
    assert not by_hand(tmp_path)


def test_the_steps_by_hand_agree_that_it_is_whole(exported: Path, tmp_path: Path) -> None:
    for name in ("b.zip", "K"):
        shutil.copy(exported / name, tmp_path / name)
    assert by_hand(tmp_path)


def alone(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, VERIFIER, *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=60)


def by_hand(folder: Path) -> bool:
    """Whether the steps of docs/verify.md, as they stand there, say nothing against b.zip."""
    (script,) = re.findall(r"```sh\n(mkdir b && unzip.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    ended = subprocess.run(["bash", "-e", "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    id = json.loads((folder / "b" / "record.json").read_bytes())["id"]
    linked = [line for line in ended.stdout.splitlines() if line.startswith("linked/") and " in the log" in line]
    refer = all(id in line.partition(" in the log")[2] for line in linked)
    bad = re.search(r"\b(False|NOT IN THE LOG|ANOTHER RECORD|CHANGED)\b", ended.stdout)
    return ended.returncode == 0 and refer and bad is None


# forged by how it is packed: nothing can be told from it, since tools would unpack different things


def test_members_twice_or_out_of_order_are_refused(exported: Path, tmp_path: Path) -> None:
    members = members_of(exported / "b.zip")
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = pack([members[0], ("record.json", b"{}"), *members[1:]], tmp_path / "twice.zip")
    with pytest.warns(UserWarning, match="Duplicate name"):
        same_twice = pack([*members, members[1]], tmp_path / "same.zip")
    for bundle in (twice, same_twice, pack(members[::-1], tmp_path / "order.zip")):
        verdict = checked(bundle)
        assert verdict.exit == 1, bundle.name


@pytest.mark.parametrize("name", ["README.txt", "record.json", "proof.json", "checkpoint.json"])
def test_what_must_be_there(exported: Path, tmp_path: Path, name: str) -> None:
    members = [each for each in members_of(exported / "b.zip") if each[0] != name]
    verdict = checked(pack(members, tmp_path / "b.zip"))
    assert verdict.exit == 1
    assert f"{name} is missing" in verdict.to_text()


@pytest.mark.parametrize("name", ["content.json", "artefacts/files/2.txt"])
def test_a_text_or_file_that_is_left_out_cannot_be_told(exported: Path, tmp_path: Path, name: str) -> None:
    members = [each for each in members_of(exported / "b.zip") if each[0] != name]
    assert checked(pack(members, tmp_path / "b.zip")).exit == 2


def test_an_earlier_open_format_cannot_be_told(exported: Path, tmp_path: Path) -> None:
    for schema, words in (("llmxai.bundle/1", "an earlier llmxai wrote it"), ("llmxai.bundle/3", "unknown here")):
        members = proof_changed(lambda proof, schema=schema: proof.update(schema=schema, size=7, root="aa"))(
            members_of(exported / "b.zip"), tmp_path
        )
        verdict = checked(pack(members, tmp_path / "b.zip"))
        assert (verdict.exit, words in verdict.to_text()) == (2, True)


def spoilt(change: Callable[[bytearray], object]) -> Callable[[Path], bytes]:
    def apply(bundle: Path) -> bytes:
        data = bytearray(bundle.read_bytes())
        change(data)
        return bytes(data)

    return apply


def of_every_member(offset_of_local: int, offset_of_central: int, value: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        for mark, offset in ((b"PK\3\4", offset_of_local), (b"PK\1\2", offset_of_central)):
            at = data.find(mark)
            while at >= 0:
                struct.pack_into("<H", data, at + offset, value)
                at = data.find(mark, at + 4)

    return change


def rename_locally(data: bytearray) -> None:
    """unzip shows one name and Python another."""
    at = data.index(b"record.json")
    data[at : at + 6] = b"RECORD"


def lie_about_size(data: bytearray) -> None:
    first = data.index(b"record.json")
    central = data.index(b"record.json", data.index(b"PK\1\2"))
    struct.pack_into("<L", data, first - 30 + 22, 5)
    struct.pack_into("<L", data, central - 46 + 24, 5)


def with_comment(data: bytearray) -> None:
    struct.pack_into("<H", data, len(data) - 2, 4)
    data += b"note"


def as_link(data: bytearray) -> None:
    at = data.index(b"artefacts/", data.index(b"PK\1\2")) - 46
    struct.pack_into("<L", data, at + 38, 0o120777 << 16)


ODD = {
    "bytes before": spoilt(lambda data: data.__setitem__(slice(0, 0), b"#!/bin/sh\n")),
    "bytes after": spoilt(lambda data: data.extend(b"more")),
    "a comment": spoilt(with_comment),
    "two names of a member": spoilt(rename_locally),
    "a lie about the size": spoilt(lie_about_size),
    "a link": spoilt(as_link),
    "encrypted": spoilt(of_every_member(6, 8, 1)),
    "sizes that come later": spoilt(of_every_member(6, 8, 8)),
    "Deflate64": spoilt(of_every_member(8, 10, 9)),
    "bzip2": lambda bundle: pack(members_of(bundle), bundle.with_name("x"), method=zipfile.ZIP_BZIP2).read_bytes(),
    "lzma": lambda bundle: pack(members_of(bundle), bundle.with_name("x"), method=zipfile.ZIP_LZMA).read_bytes(),
    "a cut": lambda bundle: bundle.read_bytes()[:-1],
}


@pytest.mark.parametrize("form", ODD)
def test_an_odd_form_is_a_sentence_and_ends_with_2(form: str, exported: Path, tmp_path: Path) -> None:
    shutil.copy(exported / "b.zip", tmp_path / "a.zip")
    (tmp_path / "b.zip").write_bytes(ODD[form](tmp_path / "a.zip"))
    verdict = checked(tmp_path / "b.zip")
    assert (verdict.exit, len(verdict.findings)) == (2, 1), verdict.to_text()
    ended = alone(tmp_path / "b.zip")
    assert (ended.returncode, ended.stderr) == (2, "")


def test_a_member_whose_bytes_were_changed_is_tampered(exported: Path, tmp_path: Path) -> None:
    data = bytearray((exported / "b.zip").read_bytes())
    data[data.index(b"record.json") + 40] ^= 1
    (tmp_path / "b.zip").write_bytes(data)
    assert checked(tmp_path / "b.zip").exit == 1


def zeros(n: int) -> bytes:
    """`n` MiB of zeros as Deflate packs them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * n + packer.flush()


@pytest.mark.parametrize("told", ["its size", "a small one"])
def test_a_bomb_is_not_unpacked(exported: Path, tmp_path: Path, told: str) -> None:
    """A member of 3 GiB in 3 MB: by what its headers say, and by a lie in them."""
    packed = zeros(3072)
    size = 3 * 2**30 if told == "its size" else len(dict(members_of(exported / "b.zip"))["record.json"])
    members = [(name, data, zlib.crc32(data), len(data)) for name, data in members_of(exported / "b.zip")]
    blocks, directory = b"", b""
    for name, data, member_crc, member_size in members:
        method, body, checksum, length = 0, data, member_crc, member_size
        if name == "record.json":
            method, body, checksum, length = 8, packed, 0, size
        shared = (20, 0, method, 0, 33, checksum, len(body), length, len(name))
        directory += struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, *shared, 0, 0, 0, 0, 0, len(blocks)) + name.encode()
        blocks += struct.pack("<4s5H3L2H", b"PK\3\4", *shared, 0) + name.encode() + body
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, len(members), len(members), len(directory), len(blocks), 0)
    (tmp_path / "b.zip").write_bytes(blocks + directory + end)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    verdict = checked(tmp_path / "b.zip")
    assert verdict.exit == 2, verdict.to_text()
    assert time.process_time() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def test_the_readme_by_hand_is_the_one_of_the_verifier() -> None:
    assert hashlib.sha256(README.encode()).hexdigest() in DOCS.read_text(encoding="utf-8")


def test_an_artefact_that_would_be_unpacked_elsewhere(tmp_path: Path) -> None:
    """A record that its own writer made to harm: its file's name leads out of the folder."""
    data = b"* * * * * evil\n"
    file = File("../../evil", len(data), hashlib.sha256(data).hexdigest())
    with open_log(tmp_path / "run" / "evidence", signer=KEY) as log:
        id = log.append(make_record(artefacts=[file])).id
    members = members_of(export_bundle(tmp_path / "run", id, tmp_path / "a.zip"))
    members.insert(2, ("artefacts/../../evil", data))
    verdict = checked(pack(members, tmp_path / "b.zip"))
    assert verdict.exit == 2
    assert "outside the folder" in verdict.to_text()
