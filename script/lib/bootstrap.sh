# Sourced by the commands in script/: installs what they need, on Debian and Ubuntu, and only what is missing.
#
#   bootstrap PURPOSE EXTRA...    PURPOSE is demo, quick or test; EXTRA are extras of setup.cfg
#
# Afterwards $PYTHON is an interpreter that has latentvirt, from this checkout, and those extras.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
VENV=$ROOT/.venv
PYTHON=$VENV/bin/python
SYSTEM_PYTHON=/usr/bin/python3

LIVE_AFTER_S=2 # a phase shorter than this is not worth a status line
FAILURE_LINES=30

PYTHON_PACKAGES=(ca-certificates gcc libc6-dev libvirt-dev pkg-config python3-dev python3-venv)
# fakeroot and uidmap: how an ordinary user builds an image. libvirt-daemon-system: its user libvirt-qemu, whom
# the QEMU driver looks up as soon as root opens it, whatever qemu.conf says.
DEMO_PACKAGES=(
    e2fsprogs fakeroot libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-system mmdebstrap
    qemu-system-x86 qemu-utils tini uidmap
)
TEST_PACKAGES=(
    busybox dnsmasq-base fdisk git gnupg iproute2 iptables libvirt-clients openssh-client openssh-server ovmf swtpm
    swtpm-tools
)
# Installing must not leave services on a person's machine that were not there before.
SERVICES=(
    libvirt-guests.service libvirtd.service libvirtd.socket libvirtd-ro.socket libvirtd-admin.socket
    virtlockd.socket virtlockd-admin.socket virtlogd.socket virtlogd-admin.socket ssh.service ssh.socket
)

die() {
    printf '%s\n' "$@" >&2
    exit 1
}

# phase WHAT COMMAND...: run a command, its output shown only if it fails; tell that it runs and how long it took.
phase() {
    local what=$1 began=$SECONDS log painter= status=0
    shift
    log=$(mktemp)
    if [ -t 1 ]; then
        paint "$what" "$log" $$ &
        painter=$!
    else
        echo "$what..."
    fi
    "$@" >"$log" 2>&1 </dev/null || status=$?
    if [ -n "$painter" ]; then
        kill "$painter" 2>/dev/null
        wait "$painter" 2>/dev/null || true
        printf '\r\033[K'
    fi
    if [ "$status" != 0 ]; then
        tail -n "$FAILURE_LINES" "$log" >&2
        rm -f "$log"
        echo "$what: failed after $((SECONDS - began)) s" >&2
        return "$status"
    fi
    rm -f "$log"
    echo "$what: $((SECONDS - began)) s"
}

paint() {
    local what=$1 log=$2 parent=$3 began=$SECONDS last width
    width=$(($(tput cols 2>/dev/null || echo 80) - 1))
    while kill -0 "$parent" 2>/dev/null; do
        sleep 0.5
        if ((SECONDS - began >= LIVE_AFTER_S)); then
            last=$(tail -n 1 "$log" | tr -cd '[:print:]')
            last="$what $((SECONDS - began)) s  $last"
            printf '\r\033[K%s' "${last:0:width}"
        fi
    done
}

missing_packages() {
    comm -23 <(printf '%s\n' "$@" | sort -u) \
        <(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null | sed -n 's/^installed //p' | sort -u)
}

# as_root COMMAND...: the caller has made sure that it works.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

may_become_root() {
    [ "$(id -u)" = 0 ] || { command -v sudo >/dev/null && { sudo -n true 2>/dev/null || { [ -t 0 ] && sudo -v; }; }; }
}

install_packages() {
    local missing
    if ! command -v dpkg-query >/dev/null; then
        echo "This is neither Debian nor Ubuntu; what is needed is taken to be there. Their packages: $*"
        return
    fi
    mapfile -t missing < <(missing_packages "$@")
    if [ ${#missing[@]} = 0 ]; then
        # Guests are made of packages as well, and base systems often come without apt's lists.
        if ! compgen -G '/var/lib/apt/lists/*_Packages*' >/dev/null && may_become_root; then
            phase "apt-get update" as_root apt-get -q update
        fi
        return 0
    fi
    may_become_root ||
        die "These packages are missing, and installing them takes root:" "  apt-get install ${missing[*]}"
    phase "installing ${missing[*]}" as_root bash -c "$INSTALL" install "${SERVICES[*]}" "${missing[@]}"
}

# Runs as root. policy-rc.d is Debian's way to say that no service may be started now; one that is there already
# has its reasons. The lock keeps a second run from taking ours away while the first one still installs.
# shellcheck disable=SC2016
INSTALL='
set -eu
export DEBIAN_FRONTEND=noninteractive
services=$1
shift
policy=/usr/sbin/policy-rc.d
exec 9>/run/lock/latentvirt-packages
flock 9
before=$(systemctl list-unit-files --state=enabled --no-legend --plain $services 2>/dev/null | cut -d" " -f1 || true)
if [ ! -e $policy ]; then
    trap "rm -f $policy" EXIT
    printf "#!/bin/sh\nexit 101\n" >$policy
    chmod 755 $policy
fi
apt-get -q update
apt-get -q -y --no-install-recommends -o DPkg::Lock::Timeout=600 install "$@"
if command -v systemctl >/dev/null; then
    for service in $services; do
        case " $(echo $before) " in
            *" $service "*) ;;
            *) systemctl disable "$service" >/dev/null 2>&1 || true ;;
        esac
    done
fi
'

# One line per extra, each with a digest of all that its installation depends on.
stamp_of() {
    { cat "$ROOT/setup.cfg" "$ROOT/pyproject.toml"; "$SYSTEM_PYTHON" -VV; echo "$ROOT $1"; } | sha256sum
}

venv_is_ready() {
    local extra
    "$PYTHON" -c '' 2>/dev/null || return 1
    for extra in "$@"; do
        grep -qsxF "$extra $(stamp_of "$extra")" "$VENV/latentvirt-stamp" || return 1
    done
}

make_venv() {
    local joined
    venv_is_ready "$@" && return
    [ -w "$ROOT" ] || die "$ROOT cannot be written to, and its .venv is missing or out of date." \
        "Clone the repository to a folder of your own, or let its owner run this first."
    mkdir -p "$ROOT/.cache"
    exec 8>"$ROOT/.cache/venv.lock"
    flock 8
    if ! venv_is_ready "$@"; then
        # A virtual environment knows its own path: one that was moved, or has lost its Python, is made anew.
        if ! grep -qsxF "$ROOT" "$VENV/latentvirt-root" || ! "$PYTHON" -c '' 2>/dev/null; then
            phase "making .venv" "$SYSTEM_PYTHON" -m venv --clear "$VENV"
            echo "$ROOT" >"$VENV/latentvirt-root"
        fi
        joined=$(IFS=, && echo "$*")
        phase "installing latentvirt[$joined] into .venv" \
            "$PYTHON" -m pip install --disable-pip-version-check --editable "$ROOT[$joined]"
        for extra in "$@"; do
            echo "$extra $(stamp_of "$extra")"
        done >>"$VENV/latentvirt-stamp"
    fi
    exec 8>&-
}

# Guests are kept in the cache of the user; one without a home keeps them here.
choose_cache() {
    if [ -z "${LATENTVIRT_CACHE:-}" ] && ! mkdir -p "$HOME/.cache/latentvirt" 2>/dev/null; then
        export LATENTVIRT_CACHE=$ROOT/.cache/guests
    fi
}

bootstrap() {
    local purpose=$1 packages=("${PYTHON_PACKAGES[@]}")
    shift
    case $purpose in
        demo) packages+=("${DEMO_PACKAGES[@]}") ;;
        quick) ;;
        test) packages+=("${DEMO_PACKAGES[@]}" "${TEST_PACKAGES[@]}") ;;
    esac
    export PATH=$PATH:/usr/sbin:/sbin
    unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
    install_packages "${packages[@]}"
    "$SYSTEM_PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        die "$SYSTEM_PYTHON is older than 3.10; latentvirt needs that. Debian 12 and Ubuntu 24.04 have it."
    make_venv "$@"
    choose_cache
}
