#!/bin/sh
# Without Docker: what the build stage does, in an empty environment; then the real JupyterLab through the entry point.
#   docker/try.sh FOLDER      takes minutes and some GiB; FOLDER is made, and must not exist
# TORCH_VERSION and TORCH_INDEX as in the Dockerfile.
set -eu
[ ! -e "$1" ] || { echo "$1 exists already" >&2; exit 2; }
[ "$(id -u)" -ne 0 ] || { echo "not as root: the entry point refuses it" >&2; exit 2; }
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
mkdir -p "$1/src" "$1/home"
folder=$(CDPATH='' cd -- "$1" && pwd)
for file in llmxai docker pyproject.toml locks README.md; do cp -R "$root/$file" "$folder/src/"; done

run() {
    ${in_place:-} env -u PYTHONPATH -u VIRTUAL_ENV PATH="$folder/venv/bin:/usr/local/bin:/usr/bin:/bin" HOME="$folder/home" LLMXAI_CACHE="$folder/home/cache" \
        TORCH_VERSION="${TORCH_VERSION:-}" TORCH_INDEX="${TORCH_INDEX:-}" LLMXAI_PORT="${LLMXAI_PORT:-18888}" "$@"
}
asks() { # with this token, JupyterLab says this status
    python3 - "$1" "$2" "${LLMXAI_PORT:-18888}" << 'PYTHON'
import sys, urllib.error, urllib.request
token, expected, port = sys.argv[1:]
request = urllib.request.Request(f"http://127.0.0.1:{port}/api/contents", headers={"Authorization": f"token {token}"})
try:
    status = urllib.request.urlopen(request, timeout=10).status
except urllib.error.HTTPError as error:
    status = error.code
print(f"token {token[:4]!r}...: {status}, expected {expected}")
sys.exit(str(status) != expected)
PYTHON
}

run "$folder/src/docker/install.sh" dependencies "$folder/venv"
run "$folder/src/docker/install.sh" package "$folder/venv"
run llmxai explain --raw "The capital of France is" --max-new-tokens 2 --out "$folder/run"

cd "$folder/home"
# in place of the subshell, so that its id is JupyterLab's own
(in_place='exec'; run LLMXAI_LISTEN=127.0.0.1 JUPYTER_TOKEN=0123456789abcdef "$folder/src/docker/entrypoint.sh" lab) > "$folder/lab.log" 2>&1 &
lab=$!
trap 'kill $lab' EXIT
for _ in 1 2 3 4 5 6 7 8 9 10 11 12; do
    sleep 5
    if run LLMXAI_LISTEN=127.0.0.1 "$folder/src/docker/healthcheck.sh"; then break; fi
done 2> /dev/null
asks 0123456789abcdef 200
asks wrong 403
echo "all of it worked"
