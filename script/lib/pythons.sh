# Sourced by script/test after bootstrap.sh: the quick tests on other Pythons, and on the oldest libraries.
# shellcheck shell=bash

OLDEST_PYTHON=3.10
NEWEST_PYTHON=3.14
QUICK_ONLY=(-m 'not (libvirt or guest or soak)' --ignore tests/test_packaging.py -q -r fE -p no:cacheprovider)
# Half of the time a test waits for something. None of these takes long: what hangs is ended sooner than others. It is
# not replaced: near the end xdist may wait for ever for a process that was started in another's place.
SIDE_BY_SIDE=(--numprocesses $(($(nproc) < 4 ? $(nproc) + 1 : 4)) --dist loadfile --max-worker-restart 0
    -o faulthandler_timeout=900)
LOWEST=(buildbot buildbot-worker buildbot-www twisted)

# Prints the interpreter of a version such as 3.12, if it is installed.
find_python() {
    local found
    for found in "$HOME/.pyenv/versions/$1".*/bin/python3 $(type -ap "python$1"); do
        # A version manager's stand-in exists for versions that it would refuse to run.
        if [ -x "$found" ] && [ "$("$found" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$1" ]; then
            echo "$found"
            return
        fi
    done
}

installed_versions() {
    local minor
    for ((minor = ${OLDEST_PYTHON#3.}; minor <= ${NEWEST_PYTHON#3.}; minor++)); do
        if [ -n "$(find_python "3.$minor")" ]; then
            echo "3.$minor"
        fi
    done
}

# Prints the lowest versions that setup.cfg allows, as pip's constraints.
lowest_constraints() {
    local name
    for name in "${LOWEST[@]}"; do
        sed -n "s/^ *$name >= *\([0-9.]*\)$/$name == \1/p" "$ROOT/setup.cfg"
    done
}

# run_on NAME INTERPRETER [CONSTRAINTS]: make an environment, once, and run the quick tests in it.
run_on() {
    local name=$1 python=$2 constraints=${3:-/dev/null} folder=$ROOT/.cache/venvs/$1 stamp
    stamp=$({ cat "$ROOT/setup.cfg" "$constraints"; "$python" -VV; echo "$folder"; } | sha256sum)
    if [ "$(cat "$folder/latentvirt-stamp" 2>/dev/null)" != "$stamp" ]; then
        # Where a caller asks for the status, bash does not stop at what fails.
        phase "environment for $name" make_environment "$folder" "$python" "$constraints" || return
        echo "$stamp" >"$folder/latentvirt-stamp"
    fi
    phase "quick tests on $name" "$folder/bin/python" -m pytest "${QUICK_ONLY[@]}" "${SIDE_BY_SIDE[@]}"
}

make_environment() {
    "$2" -m venv --clear "$1" &&
        "$1/bin/python" -m pip install --disable-pip-version-check -c "$3" --editable "$ROOT[test]"
}

# Run the quick tests on the oldest Python with the oldest libraries, and on every Python that is installed but
# ours. All of them are tested, whichever fail.
test_other_pythons() {
    local failed=0 versions ours version oldest constraints=$ROOT/.cache/lowest.txt
    mapfile -t versions < <(installed_versions)
    ours=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    oldest=$(find_python "${versions[0]}")
    lowest_constraints >"$constraints"
    run_on "python${versions[0]}-lowest" "$oldest" "$constraints" || failed=1
    for version in "${versions[@]}"; do
        if [ "$version" != "$ours" ]; then
            run_on "python$version" "$(find_python "$version")" || failed=1
        fi
    done
    return $failed
}
