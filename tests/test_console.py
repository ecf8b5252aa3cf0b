"""What of a guest's console reaches the build's page."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from latentvirt.console import KEPT_OF_A_LINE, LONGEST_LINE, REDACTED, ConsoleLog

SECRET = "hunter2-correct-horse"

PIECES = st.lists(
    st.sampled_from(
        [
            *(b"word ", b"\r\n", b"\n", b"\t", b"\x1b[1;31m", b"\x1b]0;title\x07", b"\xff", b"\x00"),
            *("ä€".encode(), SECRET.encode(), SECRET[:7].encode(), SECRET[7:].encode()),
            *(b"x" * 1999, b"\x1b[0m" * 500),
        ]
    ),
    max_size=30,
)


def _lines(parts: list[bytes]) -> list[str]:
    log = ConsoleLog([SECRET])
    return [line for part in parts for line in log.feed(part)] + log.finish()


def _split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(PIECES, st.lists(st.integers(0, 10**6), max_size=20))
def test_any_split_gives_the_same_lines(pieces: list[bytes], cuts: list[int]) -> None:
    """How the bytes are cut on their way does not change what is shown."""
    data = b"".join(pieces)
    assert _lines(_split(data, cuts)) == _lines([data])


@given(PIECES, st.lists(st.integers(0, 10**6), max_size=20))
def test_no_secret_is_shown_and_no_line_is_long(pieces: list[bytes], cuts: list[int]) -> None:
    """Whatever a guest writes around a secret, and however it is cut, the secret is not shown."""
    lines = _lines(_split(b"".join(pieces), cuts))
    assert SECRET not in "\n".join(lines)
    assert all(len(line) <= LONGEST_LINE for line in lines)


def test_a_secret_hidden_in_colours_is_found() -> None:
    """Escape sequences and control characters inside a secret do not hide it."""
    assert _lines([f"pw {SECRET[:4]}\x1b[7m{SECRET[4:9]}\x00{SECRET[9:]}\n".encode()]) == [f"pw {REDACTED}"]


def test_a_secret_is_not_shown_in_part_where_a_line_is_cut() -> None:
    """A line is cut so that not even the beginning of a secret is shown."""
    noise = b"\x1b[m" * ((KEPT_OF_A_LINE - 10) // 3)
    start = KEPT_OF_A_LINE - len(noise) - 12
    (line,) = _lines([noise + b"." * start + SECRET.encode() + b"\n"])
    assert line == "." * start


def test_a_secret_that_begins_with_another() -> None:
    """Of two secrets of which one begins with the other, nothing is shown."""
    log = ConsoleLog(["abc", "abcdef"])
    assert log.feed(b"abcdef abc\n") == [f"{REDACTED} {REDACTED}"]


def test_a_secret_that_is_learnt_later() -> None:
    """A password that is made during the start is redacted from then on."""
    log = ConsoleLog()
    log.hide("later")
    log.hide("")
    assert log.feed(b"see you later\n") == [f"see you {REDACTED}"]


def test_a_guest_that_never_ends_its_line_costs_little() -> None:
    """A line without end takes no more memory than a long one."""
    log = ConsoleLog()
    for _ in range(100):
        assert log.feed(b"x" * 65536) == []
    assert len(log._rest) == KEPT_OF_A_LINE
    assert log.feed(b"\n") == ["x" * LONGEST_LINE]


def test_head_and_tail_are_kept() -> None:
    """The first lines come out live, the last ones at the end, with a word about those between."""
    log = ConsoleLog(head_lines=2, tail_lines=2)
    live = log.feed(b"".join(b"line %d\n" % number for number in range(7)))
    assert live == ["line 0", "line 1"]
    assert log.finish() == ["[latentvirt: 3 lines dropped here]", "line 5", "line 6"]
    assert log.finish() == []


def test_what_has_no_line_end_yet_is_shown_at_the_end() -> None:
    """The last words of a guest that hangs are not lost."""
    log = ConsoleLog()
    assert log.feed(b"login: ") == []
    assert log.finish() == ["login: "]


def test_the_last_lines_for_a_message() -> None:
    """A failure's message gets the last lines, dropped or not."""
    log = ConsoleLog(head_lines=1, tail_lines=2)
    log.feed(b"a\nb\nc\nd\n")
    assert log.tail(2) == ["c", "d"]


def test_a_panic_is_noticed() -> None:
    """A kernel's panic on the console is noticed, for domains without a panic device."""
    log = ConsoleLog()
    log.feed(b"fine\n")
    assert log.panic is None
    log.feed(b"[    2.1] Kernel panic - not syncing: sysrq triggered crash\r\n")
    assert log.panic == "[    2.1] Kernel panic - not syncing: sysrq triggered crash"
