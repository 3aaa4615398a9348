"""A login over SSH: Debian's sshd as the entry point starts it, for uid 1000, and a real client.

The account and its home exist in a mount namespace only: nothing of the machine's own accounts is touched.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from needed import needed

ENTRYPOINT = Path(__file__).resolve().parents[2] / "docker" / "entrypoint.sh"
UID = 1000
IN_NAMESPACE = f"""
set -eu
mount --bind "$1/passwd" /etc/passwd
mount -t tmpfs -o mode=755 tmpfs /home
cp -R "$1/home" /home/llmxai
chown -R {UID}:{UID} /home/llmxai
chmod "$2" /home/llmxai
chown -R 0:0 /home/llmxai/.ssh && chmod -R a+rX /home/llmxai/.ssh # as a mounted file: it belongs to another user
cp "$1/entrypoint.sh" /home/entrypoint.sh
mount -t tmpfs -o mode=1777 tmpfs /tmp
cd /home/llmxai
shift 2
exec setpriv --reuid "$1" --regid {UID} --clear-groups sh /home/entrypoint.sh sleep 60
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A home with one key that may log in, another key, and the files that the namespace puts in place."""
    if os.getuid():
        pytest.skip("making an account in a mount namespace needs root")
    if not Path("/usr/sbin/sshd").exists() or shutil.which("ssh") is None:
        needed("no OpenSSH", "sshd")
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine allows no namespaces")
    accounts = [line for line in Path("/etc/passwd").read_text().splitlines() if f":{UID}:" not in line]
    (tmp_path / "passwd").write_text("\n".join([*accounts, f"llmxai:x:{UID}:{UID}::/home/llmxai:/bin/bash"]) + "\n")
    (tmp_path / "home" / ".ssh").mkdir(parents=True)
    for name in ("key", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True)
    shutil.copy(tmp_path / "key.pub", tmp_path / "home" / ".ssh" / "authorized_keys")
    shutil.copy(ENTRYPOINT, tmp_path / "entrypoint.sh")
    return tmp_path


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
    return port


def start(place: Path, port: int, mode: str = "755", uid: int = UID) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *("unshare", "--mount", "--pid", "--fork", "--propagation", "private"),
            *("sh", "-c", IN_NAMESPACE, "sh", str(place), mode, str(uid)),
        ],
        env={
            **{"PATH": "/opt/llmxai/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/home/llmxai", "HF_HOME": "/cache/hf"},
            **{"LLMXAI_SSH": "1", "LLMXAI_SSH_PORT": str(port), "LLMXAI_LISTEN": "127.0.0.1"},
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def running(place: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """sshd, started; and the client that asks it."""
    port = free_port()
    with start(place, port) as server:
        try:
            for _ in range(100):
                with socket.socket() as client:
                    if client.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert server.poll() is None, server.stderr and server.stderr.read()
                time.sleep(0.1)

            def login(*options: str, key: str = "key", user: str = "llmxai") -> subprocess.CompletedProcess[str]:
                settings = [
                    *("BatchMode=yes", "IdentitiesOnly=yes", "IdentityAgent=none", "StrictHostKeyChecking=no"),
                    *("UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ConnectTimeout=10"),
                ]
                command = ["ssh", "-F", "/dev/null", "-p", str(port), "-i", str(place / key), *options]
                command += [part for setting in settings for part in ("-o", setting)]
                script = 'id -u; echo "$PATH"; echo "$HF_HOME"'
                return subprocess.run(
                    [*command, f"{user}@127.0.0.1", script], capture_output=True, text=True, timeout=30, check=False
                )

            yield login
        finally:
            # the first process of the namespace takes all others with it; sshd is one of them
            for child in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split():
                os.kill(int(child), signal.SIGKILL)


def refused(ended: subprocess.CompletedProcess[str]) -> None:
    """Refused, and a key is all that the server would have taken."""
    assert (ended.returncode, ended.stdout) == (255, "")
    assert "Permission denied (publickey)." in ended.stderr


def test_the_key_logs_in_and_nothing_else_does(place: Path) -> None:
    with running(place) as login:
        ended = login()
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.splitlines() == [str(UID), "/opt/llmxai/bin:/usr/bin:/bin:/usr/sbin:/sbin", "/cache/hf"]
        refused(login(key="other"))
        refused(login("-o", "PubkeyAuthentication=no"))
        refused(
            login("-o", "PubkeyAuthentication=no", "-o", "PreferredAuthentications=password,keyboard-interactive,none")
        )
        refused(login(user="root"))


def test_keys_in_the_temporary_directory_would_be_refused(place: Path) -> None:
    """The fault that this guards against: StrictModes is on, and /tmp may be written to by anyone."""
    script = place / "entrypoint.sh"
    moved = script.read_text().replace("folder=$HOME/.llmxai-sshd", "folder=$(mktemp -d)/sshd")
    assert moved != script.read_text()
    script.write_text(moved)
    with running(place) as login:
        refused(login())


@pytest.mark.parametrize(
    ("mode", "uid", "words"),
    [
        ("775", UID, "others may write to /home/llmxai, so sshd would refuse every key"),
        ("757", UID, "others may write to /home/llmxai, so sshd would refuse every key"),
        ("777", 54321, "uid 54321 has no account"),
    ],
)
def test_what_sshd_could_not_work_with_is_refused_at_the_start(place: Path, mode: str, uid: int, words: str) -> None:
    with start(place, free_port(), mode, uid) as server:
        _, error = server.communicate(timeout=30)
    assert (server.returncode, words in error) == (2, True), error


def test_a_port_in_use_is_refused_at_the_start(place: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with start(place, taken.getsockname()[1]) as server:
            _, error = server.communicate(timeout=30)
    assert server.returncode == 2
    assert "sshd did not start" in error
