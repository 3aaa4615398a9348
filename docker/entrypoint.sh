#!/bin/sh
# Where the container starts. No argument, `lab` or `jupyter ...`: JupyterLab, behind a token. Anything else is run as it
# is (`llmxai explain ...`).
#   JUPYTER_TOKEN, or JUPYTER_TOKEN_FILE (a mounted secret)   what a browser must show; 16 characters at least
#   LLMXAI_LISTEN   the address to listen on: 0.0.0.0 in a container, since its loopback cannot be reached from outside
#   LLMXAI_PORT     8888
#   LLMXAI_SSH=1    also start sshd on LLMXAI_SSH_PORT (2222), for the keys in ~/.ssh/authorized_keys and for nothing else
# What opens Jupyter in any other way is checked when the server starts, by jupyter_guard.py.
set -eu

refuse() {
    echo "entrypoint: $*" >&2
    exit 2
}

read_token() {
    if [ -n "${JUPYTER_TOKEN_FILE:-}" ]; then
        [ -r "$JUPYTER_TOKEN_FILE" ] || refuse "JUPYTER_TOKEN_FILE $JUPYTER_TOKEN_FILE cannot be read."
        JUPYTER_TOKEN=$(cat "$JUPYTER_TOKEN_FILE")
        unset JUPYTER_TOKEN_FILE
    fi
    # Jupyter reads it from the environment, so that it is on no command line
    [ -z "${JUPYTER_TOKEN+set}" ] || export JUPYTER_TOKEN
}

is_loopback() {
    case $1 in
        localhost | 127.0.0.1 | ::1) return 0 ;;
        *) return 1 ;;
    esac
}

require_token() {
    if [ -z "${JUPYTER_TOKEN+set}" ]; then
        is_loopback "$1" && return # Jupyter then makes one up and prints it
        refuse "JupyterLab would listen on $1 without a token, and whoever reaches it could run code. Set JUPYTER_TOKEN" \
            "(or JUPYTER_TOKEN_FILE) to 16 characters or more, such as the output of: openssl rand -hex 24"
    fi
    case $JUPYTER_TOKEN in
        *[![:space:]]*) ;;
        *) refuse "JUPYTER_TOKEN is empty or blank. Set it to 16 characters or more: openssl rand -hex 24" ;;
    esac
    case $JUPYTER_TOKEN in
        *[[:space:]]*) refuse "JUPYTER_TOKEN holds white space. Set it to the output of: openssl rand -hex 24" ;;
    esac
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
    getent passwd "$(id -u)" > /dev/null || refuse "LLMXAI_SSH=1, and uid $(id -u) has no account. Leave --user out."
    # StrictModes: the file of keys and every folder above it may be writable for this user and root only. A folder in
    # /tmp never is, so they lie in the home; and a mounted file may belong to another user, so they are a copy.
    [ -z "$(find "$HOME" -maxdepth 0 -perm /022)" ] ||
        refuse "LLMXAI_SSH=1, and others may write to $HOME, so sshd would refuse every key. Run: chmod go-w $HOME"
    folder=$HOME/.llmxai-sshd
    rm -rf "$folder"
    (umask 077 && mkdir "$folder" && cat "$keys" > "$folder/authorized_keys")
    ssh-keygen -q -t ed25519 -N '' -f "$folder/host_key"
    # what a session finds: the same programs and the same caches as the container's own command
    session="PATH=$PATH"
    [ -z "${LLMXAI_CACHE:-}" ] || session="$session LLMXAI_CACHE=$LLMXAI_CACHE"
    [ -z "${HF_HOME:-}" ] || session="$session HF_HOME=$HF_HOME"
    # not as a daemon, so that who came and who was refused stands in the container's log
    /usr/sbin/sshd -D -e -f /dev/null -p "${LLMXAI_SSH_PORT:-2222}" -h "$folder/host_key" \
        -o "ListenAddress=${LLMXAI_LISTEN:-0.0.0.0}" -o "SetEnv=$session" \
        -o "AuthorizedKeysFile=$folder/authorized_keys" -o "PidFile=$folder/pid" -o StrictModes=yes \
        -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no -o PermitRootLogin=no \
        -o AuthenticationMethods=publickey -o UsePAM=no -o X11Forwarding=no -o AllowAgentForwarding=no &
    # it writes its pid once it listens
    until [ -s "$folder/pid" ]; do
        kill -0 $! 2> /dev/null || refuse "LLMXAI_SSH=1, and sshd did not start; its own line says why."
        sleep 0.1
    done
}

start_lab() {
    require_plain_options "$@"
    listen=${LLMXAI_LISTEN:-0.0.0.0}
    read_token
    require_token "$listen"
    # with a password set on the login page, the token would no longer be the only way in
    exec jupyter lab --no-browser --ip="$listen" --port="${LLMXAI_PORT:-8888}" --ServerApp.root_dir="$PWD" \
        --PasswordIdentityProvider.allow_password_change=False "$@"
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
