"""`llmxai verify`, `prove`, `consistency`, `export`, `redact`, `replay`, `review`, `keys`, `evidence`."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from llmxai.commands.console import json_text, progress
from llmxai.errors import EvidenceError, KeyFileError, OptionError

keys = typer.Typer(no_args_is_help=True, help="Create and show keys for signing and for private records.")
reviews = typer.Typer(no_args_is_help=True, help="Sign off a record, or enter the marks made on its page.")
evidence = typer.Typer(no_args_is_help=True, help="Maintain a log: seal it, prune old content.")

Run = Annotated[
    Path | None, typer.Option("--run", help="Folder of the run; without it, the logs below runs/ are searched.")
]
Key = Annotated[Path | None, typer.Option(help="Signing key file; else LLMXAI_SIGNING_KEY or LLMXAI_SIGNING_KEY_FILE.")]
By = Annotated[str | None, typer.Option(help="Who does this, as a pseudonym; it stays in the record.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Id = Annotated[str, typer.Argument(help="Id of a record, or its first 8 characters or more.")]


@keys.command("new")
def new_key(
    path: Annotated[Path, typer.Argument(help="File for the private key; the public key goes into FILE.pub.")],
    private: Annotated[
        bool, typer.Option("--private", help="Create a secret for the digests of --private records instead.")
    ] = False,
) -> None:
    """Create an Ed25519 signing key (or a secret for private digests); never replaces an existing file."""
    from llmxai.evidence.keys import key_id, new_secret_key, new_signing_key

    if private:
        typer.echo(f"secret: {path} (key {new_secret_key(path).id}). Set LLMXAI_PRIVATE_KEY_FILE={path}")
        typer.echo("Keep it apart from the logs. Texts can be checked only with it; if it is lost, never again.")
        return
    public = new_signing_key(path)
    typer.echo(f"signing key: {path} (mode 600; set LLMXAI_SIGNING_KEY_FILE={path})")
    typer.echo(f"public key:  {path}.pub (key {key_id(public)}); give it to those who verify")


@keys.command("show")
def show_key(
    path: Annotated[Path, typer.Argument(help="A signing key or a public key.")],
    as_json: Json = False,
) -> None:
    """Print the public key in PEM and its id."""
    from llmxai.evidence.keys import key_id, public_key, public_pem

    key = public_key(path)
    pem = public_pem(key).decode()
    told = json.dumps({"keyid": key_id(key), "public_key": pem}) if as_json else f"key {key_id(key)}\n{pem.rstrip()}"
    typer.echo(told)


def verify(
    run: Annotated[Path, typer.Argument(help="Run folder, its evidence/, a bundle (.zip) or a consistency proof.")],
    pubkey: Annotated[Path | None, typer.Option(help="Public key whose signature is required.")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="A checkpoint that was kept elsewhere.")] = None,
    as_json: Json = False,
) -> None:
    """Check that nothing was changed, removed or reordered. Exit 0: whole, 1: tampered, 2: cannot tell."""
    from llmxai.evidence.verifier.__main__ import show
    from llmxai.evidence.verifier.check import read_held, read_key
    from llmxai.evidence.verifier.check import verify as check

    try:
        key = None if pubkey is None else read_key(pubkey)
    except (OSError, ValueError) as error:
        raise KeyFileError(
            f"{pubkey}: no Ed25519 public key can be read from it ({error}). Give the .pub file of `llmxai keys new`."
        ) from error
    try:
        held = [] if checkpoint is None else [read_held(checkpoint)]
    except (OSError, ValueError) as error:
        raise EvidenceError(f"No checkpoint can be read: {error}.") from error
    verdict = check(run, key=key, held=held)
    show(json_text(verdict.to_json()) if as_json else verdict.to_text())
    raise typer.Exit(verdict.exit)


def prove(id: Id, run: Run = None) -> None:
    """Print the Merkle path from a record to a checkpoint's root, as JSON."""
    from llmxai.evidence.bundle import prove as path_of

    typer.echo(json.dumps(path_of(_run(run, id), id), indent=1))


def consistency(
    old: Annotated[Path, typer.Argument(help="The older checkpoint, kept elsewhere.")],
    new: Annotated[Path | None, typer.Argument(help="The newer one; without it, the newest in the run.")] = None,
    run: Annotated[Path, typer.Option("--run", help="Folder of the run.")] = Path("runs/explanation"),
    out: Annotated[Path | None, typer.Option(help="File for the proof; without it, it is printed.")] = None,
) -> None:
    """Prove that the log at one checkpoint begins with the log at an older one; `verify` checks the proof."""
    from llmxai.evidence.bundle import consistency as proof_of
    from llmxai.evidence.verifier.bundle import check_consistency

    proof = proof_of(old, new, run=run)
    verdict = check_consistency(proof)
    if verdict.exit == 1:
        typer.echo(verdict.to_text())
        raise typer.Exit(1)
    text = json.dumps(proof, indent=1)
    if out is None:
        typer.echo(text)
    else:
        _write(out, text + "\n")
        typer.echo(f"proof: {out}")


def export(
    id: Id, run: Run = None, out: Annotated[Path | None, typer.Option(help="The .zip; default: ID.zip.")] = None
) -> None:
    """Write one record with its proofs, texts and files as a bundle that a third party can check."""
    from llmxai.evidence.bundle import export_bundle
    from llmxai.evidence.log import find, read_log

    place = _run(run, id)
    entry, _ = find(read_log(place, manifests=True), id)
    typer.echo(f"bundle: {export_bundle(place, entry.id, out or Path(f'{entry.id}.zip'))}")


def redact(
    id: Id,
    reason: Annotated[str, typer.Option(help="Why; it stays in the log.")],
    run: Run = None,
    by: By = None,
    key: Key = None,
) -> None:
    """Remove the texts and files of a record, and its texts from the run's tables and index; digests and the reason
    stay, and the chain stays intact."""
    from llmxai.evidence import redact as remove
    from llmxai.evidence import signing_key
    from llmxai.runs import clear_removed

    place = _run(run, id)
    signer = signing_key(key)
    receipt = remove(place, id, reason=reason, by=by, signer=signer)
    clear_removed(place, signer=signer)
    _told("redacted", receipt)


@reviews.command("sign")
def review(
    id: Id,
    decision: Annotated[str, typer.Option(help="For example approved, rejected or escalated.")],
    by: Annotated[str, typer.Option(help="Who decides, as a pseudonym.")],
    note: Annotated[str | None, typer.Option(help="Stored next to the log; can be redacted.")] = None,
    run: Run = None,
    key: Key = None,
) -> None:
    """Sign off a record: append a record that refers to it."""
    from llmxai.evidence import review as decide
    from llmxai.evidence import signing_key

    _told("reviewed", decide(_run(run, id), id, decision=decision, by=by, note=note, signer=signing_key(key)))


@reviews.command("import")
def import_marks(
    file: Annotated[Path, typer.Argument(help="The review.json that was saved on the page of an explanation.")],
    run: Run = None,
    key: Key = None,
) -> None:
    """Enter a reviewer's marks into the log of the record that they are about; the index of its run then shows them."""
    from llmxai.evidence import import_review, read_review, signing_key, vouched
    from llmxai.report.rebuild import INDEX
    from llmxai.runs.ledger import refresh_index

    marks = read_review(file)
    place, signer = _run(run, marks.record), signing_key(key)
    _told(f"reviewed: {marks.decision}", import_review(place, marks, signer=signer))
    if (place / INDEX).is_file():
        with vouched(place, signer=signer) as changing:
            typer.echo(f"index: {refresh_index(place, changing=changing)}")


def replay(
    id: Id,
    run: Run = None,
    as_json: Json = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let Python code in the model's folder run again.")
    ] = False,
) -> None:
    """Recompute an explanation and compare. Exit 0: within the tolerance, 1: outside, 2: cannot compare.

    This is not verification: it says how well the numbers come out here and now.
    """
    from llmxai.recompute import recompute

    with progress() as report:
        found = recompute(_run(run, id), id, trust_remote_code=trust_remote_code, progress=report)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
    else:
        typer.echo(f"replay: {found.outcome} (tolerance {found.reason}); answer: {found.answer}")
        for name, each in found.maps.items():
            typer.echo(f"{name}: largest difference {each.largest:.3g}, {each.relative:.3g} of the largest value")
        typer.echo(f"changed statuses: {found.changed_statuses}")
        for difference in found.differences:
            typer.echo(f"differs: {difference}")
        typer.echo("A replay is not verification; `llmxai verify` says whether anything was changed.")
    raise typer.Exit(found.exit)


@evidence.command()
def prune(
    run: Annotated[Path, typer.Argument(help="Folder of the run.")],
    older_than: Annotated[str, typer.Option(help="Age in days, weeks or years: 90d, 26w, 2y.")],
    by: By = None,
    key: Key = None,
) -> None:
    """Remove texts and files of older records, and their texts from the run's tables and index; the records and the
    chain stay."""
    from llmxai.evidence import prune as remove
    from llmxai.evidence import signing_key
    from llmxai.runs import clear_removed

    signer = signing_key(key)
    receipt = remove(run, older_than=_age(older_than), by=by, signer=signer)
    clear_removed(run, signer=signer)  # also where an earlier call was interrupted before it came to that
    if receipt is None:
        typer.echo(f"Nothing in {run} is older than {older_than}.")
    else:
        _told("pruned", receipt)


@evidence.command()
def seal(run: Annotated[Path, typer.Argument(help="Folder of the run.")], key: Key = None) -> None:
    """Write a checkpoint over everything so far, signed if there is a key; a copy elsewhere reveals a later cut."""
    from llmxai.evidence import open_log, signing_key
    from llmxai.evidence.log import read_log
    from llmxai.evidence.verifier.folder import CHECKPOINTS, evidence_of

    records = len(read_log(run))
    signer = signing_key(key)
    with open_log(evidence_of(run), signer=signer):
        pass
    signed = "signed" if signer else "unsigned (no key was given)"
    typer.echo(f"sealed: {records} records, {signed}: the last line of {evidence_of(run) / CHECKPOINTS}")


def _run(run: Path | None, id: str) -> Path:
    if run is not None:
        return run
    from llmxai.evidence.log import find_run

    return find_run(id)


def _age(text: str) -> timedelta:
    found = re.fullmatch(r"(\d{1,5})([dwy])", text)
    if not found:
        raise OptionError(f"--older-than {text!r}: expected a number and d, w or y (days, weeks, years): 90d.")
    return timedelta(days=int(found.group(1)) * {"d": 1, "w": 7, "y": 365}[found.group(2)])


def _told(what: str, receipt: Any) -> None:
    signed = "signed" if receipt.signed else "unsigned: no key was given"
    typer.echo(f"{what}: record {receipt.seq}, {receipt.id} ({signed})")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise EvidenceError(f"{path}: cannot be written ({error}). Choose another file.") from error
