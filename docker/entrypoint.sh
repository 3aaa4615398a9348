#!/bin/sh
# Where the container starts. No argument, `lab` or `jupyter ...`: JupyterLab, behind a token. Anything else is run as it
# is (`llmxai explain ...`).
#   JUPYTER_TOKEN, or JUPYTER_TOKEN_FILE (a mounted secret)   what a browser must show; 16 characters at least
#   LLMXAI_LISTEN   the address to listen on: 0.0.0.0 in a container, since its loopback cannot be reached from outside
#   LLMXAI_PORT     8888
#   LLMXAI_SSH=1    also start sshd on port 2222, for the keys in ~/.ssh/authorized_keys and for nothing else
set -eu

refuse() {
    echo "entrypoint: $*" >&2
    exit 2
}

read_token() {
    if [ -n "${JUPYTER_TOKEN_FILE:-}" ]; then
        [ -r "$JUPYTER_TOKEN_FILE" ] || refuse "JUPYTER_TOKEN_FILE $JUPYTER_TOKEN_FILE cannot be read."
        JUPYTER_TOKEN=$(cat "$JUPYTER_TOKEN_FILE")
    fi
    JUPYTER_TOKEN=${JUPYTER_TOKEN:-}
    # Jupyter reads it from the environment, so that it is on no command line
    export JUPYTER_TOKEN
}

is_loopback() {
    case $1 in
        localhost | 127.0.0.1 | ::1) return 0 ;;
        *) return 1 ;;
    esac
}

require_token() {
    if [ -z "$JUPYTER_TOKEN" ]; then
        is_loopback "$1" && return
        refuse "JupyterLab would listen on $1 without a token, and whoever reaches it could run code. Set JUPYTER_TOKEN" \
            "(or JUPYTER_TOKEN_FILE) to 16 characters or more, such as the output of: openssl rand -hex 24"
    fi
    [ ${#JUPYTER_TOKEN} -ge 16 ] || refuse "JUPYTER_TOKEN has ${#JUPYTER_TOKEN} characters; expected at least 16."
}

require_plain_options() {
    for option in "$@"; do
        case $option in
            *oken* | *assword* | *allow[-_]* | *dentity* | *uthenticat* | *uthoriz* | *handler_class* | *tornado_settings* | \
                *ip=* | --ip | *sock=* | *disable_check_xsrf* | *onfig=* | --config)
                refuse "$option would change who may get in. Use JUPYTER_TOKEN and LLMXAI_LISTEN instead." ;;
        esac
    done
}

start_ssh() {
    keys=$HOME/.ssh/authorized_keys
    grep -qs '^[^#]' "$keys" || refuse "LLMXAI_SSH=1 needs public keys in $keys (mount the file); there is no password."
    [ -x /usr/sbin/sshd ] || refuse "LLMXAI_SSH=1, and there is no sshd here."
    folder=$(mktemp -d)
    ssh-keygen -q -t ed25519 -N '' -f "$folder/host_key"
    # sshd judges the rights of the file that it reads, and a mounted one may belong to somebody else
    (umask 077 && cat "$keys" > "$folder/authorized_keys")
    /usr/sbin/sshd -e -f /dev/null -p 2222 -h "$folder/host_key" \
        -o "AuthorizedKeysFile=$folder/authorized_keys" -o "PidFile=$folder/pid" \
        -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no -o PermitRootLogin=no \
        -o AuthenticationMethods=publickey -o UsePAM=no -o X11Forwarding=no -o AllowAgentForwarding=no
}

start_lab() {
    require_plain_options "$@"
    listen=${LLMXAI_LISTEN:-0.0.0.0}
    read_token
    require_token "$listen"
    [ -n "$JUPYTER_TOKEN" ] || unset JUPYTER_TOKEN # Jupyter then makes one up and prints it
    exec jupyter lab --no-browser --ip="$listen" --port="${LLMXAI_PORT:-8888}" --ServerApp.root_dir="$PWD" "$@"
}

[ "$(id -u)" -ne 0 ] || refuse "started as root. Leave --user out, or give one that is not 0."
if [ "${LLMXAI_SSH:-0}" = 1 ]; then start_ssh; fi
case ${1:-lab} in
    lab) [ $# -eq 0 ] || shift; start_lab "$@" ;;
    jupyter)
        [ "${2:-}" = lab ] || refuse "jupyter ${2:-}: only \`jupyter lab\` is started here."
        shift 2
        start_lab "$@"
        ;;
    *) exec "$@" ;;
esac
