"""The release: who may do what, which code runs, and that what is published is what was built and attested."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
WORKFLOW: dict[Any, Any] = yaml.safe_load(TEXT)
JOBS: dict[str, Any] = WORKFLOW["jobs"]


def actions(job: str) -> list[str]:
    return [step["uses"].partition("@")[0] for step in JOBS[job]["steps"] if "uses" in step]


def commands(job: str) -> str:
    return "\n".join(step["run"] for step in JOBS[job]["steps"] if "run" in step)


def test_a_version_tag_starts_it_and_nothing_else() -> None:
    assert WORKFLOW[True] == {"push": {"tags": ["v[0-9]+.[0-9]+.[0-9]+"]}}  # YAML reads `on` as true
    assert "secrets." not in TEXT


def test_each_job_may_do_what_it_does_and_no_more() -> None:
    assert WORKFLOW["permissions"] == {}
    assert {name: job["permissions"] for name, job in JOBS.items()} == {
        "build": {"contents": "read"},
        "attest": {"id-token": "write", "attestations": "write"},
        "pypi": {"id-token": "write"},
        "github": {"contents": "write"},
    }
    assert JOBS["pypi"]["environment"] == "pypi"


def test_they_run_one_after_the_other() -> None:
    assert {name: job.get("needs") for name, job in JOBS.items()} == {
        **{"build": None, "attest": "build", "pypi": "attest", "github": "pypi"},
    }


def test_actions_are_pinned_by_commit() -> None:
    uses = re.findall(r"uses: (.*)$", TEXT, re.MULTILINE)
    assert len(uses) == sum(len(actions(job)) for job in JOBS)
    for line in uses:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_code_of_this_repository_runs_only_where_nothing_can_be_published() -> None:
    for job in ("attest", "pypi", "github"):
        assert "actions/checkout" not in actions(job)
        assert not re.search(r"\b(make|pip|python)\b", commands(job))
    checkout = next(step for step in JOBS["build"]["steps"] if step.get("uses", "").startswith("actions/checkout@"))
    assert checkout["with"] == {"persist-credentials": False}


@pytest.mark.parametrize("job", ["attest", "pypi", "github"])
def test_what_was_built_is_checked_before_it_is_used(job: str) -> None:
    first, second = JOBS[job]["steps"][:2]
    assert first["uses"].startswith("actions/download-artifact@")
    assert second == {"run": "sha256sum --check --strict SHA256SUMS"}


def test_the_package_and_its_bills_of_materials_are_built_and_attested() -> None:
    assert "make dist sbom" in commands("build")
    assert "make lint types test-fast" in commands("build")
    (attestation,) = [step for step in JOBS["attest"]["steps"] if "attest-build-provenance" in step.get("uses", "")]
    assert attestation["with"]["subject-path"].split() == ["dist/*", "sbom/*"]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"dist", "sbom", "lint", "types", "test-fast"} <= set(targets)


def test_no_text_from_outside_is_put_into_a_command() -> None:
    assert "${{" not in "".join(commands(job) for job in JOBS)
