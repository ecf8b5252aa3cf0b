"""What a host's own shell tells that libvirt does not: modes of folders, room, KVM's device, the time.

The same words are said to the shell of this machine and, where libvirt goes by ssh, to that of the host.
They only look.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Sequence

import attrs

from latentvirt.storage.permissions import CLASSES, class_of

RUN_S = 30
"""How long it may take in all."""

BYTES_PER_KIB = 1024

_BEGIN = "latentvirt-doctor"
"""The first line of an answer: what a login prints before it is none of ours."""

_SCRIPT = r"""
LC_ALL=C; export LC_ALL
echo latentvirt-doctor
echo "clock $(date +%s)"
echo "user $(id -u) $(id -g) $(id -G)"
for program in virt-ssh-helper nc; do
    if command -v "$program" >/dev/null 2>&1; then echo "has $program"; fi
done
if [ -e /dev/kvm ]; then echo "kvm $(ls -ldn /dev/kvm)"; fi
if grep -qwE 'vmx|svm' /proc/cpuinfo 2>/dev/null; then echo "virtualisation yes"; fi
qemu=$1; shift
if [ -n "$qemu" ]; then
    name=$(getent passwd "$qemu" 2>/dev/null | cut -d: -f1)
    echo "qemu $(id -G "${name:-$qemu}" 2>/dev/null)"
fi
look() {
    case $1 in /|.) ;; *) look "$(dirname -- "$1")" ;; esac
    if found=$(ls -ldn -- "$1" 2>&1); then printf 'part\t%s\t%s\n' "$1" "$found"
    else printf 'gone\t%s\t%s\n' "$1" "$found"; fi
}
for path; do
    printf 'path\t%s\n' "$path"
    look "$(readlink -f -- "$path" || printf '%s' "$path")"
    if [ -d "$path" ]; then
        printf 'room\t%s\n' "$(df -Pk -- "$path" 2>/dev/null | tail -n 1)"
        printf 'kind\t%s\n' "$(stat -f -c %T -- "$path" 2>/dev/null)"
        for ours in "$path"/latentvirt-*; do
            if [ -d "$ours" ]; then printf 'ours\t%s\n' "${ours##*/}"; fi
        done
        if [ -w "$path" ] && [ -x "$path" ]; then printf 'writable\n'; fi
    fi
done
"""

_MODE = re.compile(
    r"([a-z-])([r-][w-][xsS-])([r-][w-][xsS-])([r-][w-][xtT-])([.+@]?)\s+\d+\s+(\d+)\s+(\d+)\s.*"
)
_ROOM = re.compile(r".*\s(\d+)\s+\d+\s+(\d+)\s+\d+%\s.*")


@attrs.frozen(kw_only=True)
class Part:
    """One component of a path, or a device.

    Args:
        path: of the component.
        mode: as ``ls`` writes it: ``drwxr-x---``.
        uid: whose it is.
        gid: of which group.
        acl: whether an access control list says more than the mode.
        error: why it could not be looked at; empty if it could.
    """

    path: str
    mode: str = ""
    uid: int = -1
    gid: int = -1
    acl: bool = False
    error: str = ""

    def lets(self, right: str, uid: int, groups: Sequence[int]) -> bool:
        """Say whether its mode lets a user have a right, without the powers of root.

        Args:
            right: ``r``, ``w`` or ``x``.
            uid: the user.
            groups: all of the user's groups.
        """
        whose = CLASSES.index(self.class_of(uid, groups))
        letters = self.mode[1 + 3 * whose : 4 + 3 * whose]
        return right in letters.replace("s", "x").replace("t", "x")

    def class_of(self, uid: int, groups: Sequence[int]) -> str:
        """Say which of its rights are a user's, as chmod names them.

        Args:
            uid: the user.
            groups: all of the user's groups.
        """
        return class_of(uid, groups, owner=self.uid, group=self.gid)

    def __str__(self) -> str:
        return f"{self.path} ({self.mode}, owner {self.uid}:{self.gid})"


@attrs.frozen(kw_only=True)
class SeenPath:
    """A path at one moment.

    Args:
        path: as it was given.
        parts: its components from the root down, symbolic links followed.
        size: bytes of its file system; None if it is no folder.
        free: bytes that are free there.
        kind: of the file system: ``ext2/ext3``, ``nfs``...
        ours: names of the directories of latentvirt's in it, as far as whoever looked may list it.
        writable: whether whoever looked may make files in it.
    """

    path: str
    parts: tuple[Part, ...] = ()
    size: int | None = None
    free: int = 0
    kind: str = ""
    ours: tuple[str, ...] = ()
    writable: bool = False


@attrs.frozen(kw_only=True)
class Shell:
    """What a shell on a host said.

    Args:
        took_s: seconds from question to answer.
        asked_at: this machine's time when it was asked.
        clock: its time then, about.
        uid: who looked.
        groups: of whoever looked.
        programs: which of libvirt's helpers for ssh are there.
        kvm: KVM's device; None if there is none.
        virtualisation: whether an x86 processor has what KVM needs.
        qemu_groups: of the user that QEMU runs as; empty if that is not known.
        paths: what was asked for.
    """

    took_s: float = 0.0
    asked_at: float = 0.0
    clock: float = 0.0
    uid: int = -1
    groups: tuple[int, ...] = ()
    programs: frozenset[str] = frozenset()
    kvm: Part | None = None
    virtualisation: bool = False
    qemu_groups: tuple[int, ...] = ()
    paths: tuple[SeenPath, ...] = ()


@attrs.frozen
class Ran:
    """What came of a program.

    Args:
        code: its exit status; None if it did not end in time, or is not there.
        out: what it printed.
        err: what it complained of.
    """

    code: int | None
    out: str
    err: str


def run_program(words: Sequence[str], text: str) -> Ran:
    """Run a program; blocks, for a thread.

    Args:
        words: the program and its arguments.
        text: what it reads.
    """
    try:
        done = subprocess.run(
            words, input=text, capture_output=True, text=True, errors="replace", timeout=RUN_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Ran(None, "", f"{words[0]} did not end within {RUN_S} s")
    except OSError as error:
        return Ran(None, "", f"{words[0]}: {error.strerror}")
    return Ran(done.returncode, done.stdout, done.stderr)


def ask_shell(
    before: Sequence[str], paths: Sequence[str] = (), qemu_uid: int | None = None
) -> tuple[Shell | None, Ran]:
    """Ask a host's shell; blocks, for a thread.

    Args:
        before: the command that leads there; empty for this machine.
        paths: what to look at.
        qemu_uid: whom QEMU runs as, if that is known.

    Returns:
        What it said, None if it said nothing that can be understood; and what came of the program.
    """
    given = ["" if qemu_uid is None else str(qemu_uid), *paths]
    words = ["sh", "-s", "--", *given]
    if before:
        words = [*before, " ".join(map(_quoted, words))]
    asked_at = time.time()
    ran = run_program(words, _SCRIPT)
    took = time.time() - asked_at
    said = read_answer(ran.out)
    return (None if said is None else attrs.evolve(said, took_s=took, asked_at=asked_at)), ran


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def read_answer(text: str) -> Shell | None:
    """Read what a shell said; None if it did not begin to answer."""
    _, begun, rest = text.partition(f"{_BEGIN}\n")
    if not begun:
        return None
    said = Shell()
    for line in rest.splitlines():
        said = _read_line(said, line)
    return said


def _read_line(said: Shell, line: str) -> Shell:
    if "\t" in line or line == "writable":
        if line.startswith("path\t"):
            return attrs.evolve(said, paths=(*said.paths, SeenPath(path=line.partition("\t")[2])))
        if said.paths:
            return attrs.evolve(said, paths=(*said.paths[:-1], _read_path(said.paths[-1], line)))
        return said
    what, _, rest = line.partition(" ")
    numbers = tuple(int(word) for word in rest.split() if word.isdigit())
    if what == "clock" and numbers:
        return attrs.evolve(said, clock=float(numbers[0]))
    if what == "user" and numbers:
        return attrs.evolve(said, uid=numbers[0], groups=numbers[1:])
    if what == "has":
        return attrs.evolve(said, programs=said.programs | {rest})
    if what == "kvm":
        return attrs.evolve(said, kvm=_read_part("/dev/kvm", rest))
    if what == "virtualisation":
        return attrs.evolve(said, virtualisation=True)
    if what == "qemu":
        return attrs.evolve(said, qemu_groups=numbers)
    return said


def _read_path(seen: SeenPath, line: str) -> SeenPath:
    what, *rest = line.split("\t")
    if what == "writable":
        return attrs.evolve(seen, writable=True)
    if what == "room":
        found = _ROOM.fullmatch(rest[0])
        if found is None:
            return seen
        return attrs.evolve(seen, size=int(found[1]) * BYTES_PER_KIB, free=int(found[2]) * BYTES_PER_KIB)
    if what == "ours":
        return attrs.evolve(seen, ours=(*seen.ours, rest[0]))
    if what == "kind":
        return attrs.evolve(seen, kind=rest[0])
    path, words = rest[0], "\t".join(rest[1:])
    part = _read_part(path, words) if what == "part" else Part(path=path, error=words.rpartition(": ")[2])
    return attrs.evolve(seen, parts=(*seen.parts, part))


def _read_part(path: str, words: str) -> Part:
    found = _MODE.fullmatch(words)
    if found is None:
        return Part(path=path, error=f"its mode cannot be read: {words}")
    return Part(
        path=path,
        mode="".join(found.group(1, 2, 3, 4)),
        acl=found[5] == "+",
        uid=int(found[6]),
        gid=int(found[7]),
    )
