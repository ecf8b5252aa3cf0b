"""Asking vendors over HTTP: with deadlines, and again where that may help."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from latentvirt.errors import ImageError
from latentvirt.images.items import without_password

if TYPE_CHECKING:
    import requests

T = TypeVar("T")
Say = Callable[[str], None]

CONNECT_S = 10.0
"""For so long a vendor is waited for to take a connection."""

SILENT_S = 30.0
"""For so long it may send nothing."""

TRIES = 5
"""How often one thing is asked for; a try that brought something on does not count."""

FIRST_PAUSE_S = 1.0
"""Between the first try and the second; each further pause is twice as long."""

LONGEST_PAUSE_S = 30.0
"""No pause is longer, whatever the vendor asks for."""

LONGEST_TEXT_BYTES = 8 * 1024 * 1024
"""A page or a list that is longer is none."""

CHUNK_BYTES = 16 * 1024
"""Of what is read at a time; so much is lost when a connection breaks."""

OK = 200
PARTIAL = 206
RANGE_IS_WRONG = 416

MAY_PASS = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers that may be others in a while."""


class Passing(ImageError):
    """What may be otherwise when it is tried again.

    Args:
        pause: seconds that the vendor asked to wait; None if it did not.
        forward: whether the try brought something on.
    """

    def __init__(
        self, what: str, *, remedy: str = "", pause: float | None = None, forward: bool = False
    ) -> None:
        super().__init__(what, remedy=remedy)
        self.pause = pause
        self.forward = forward


LATER = "try again later; what was downloaded is kept, and the next try goes on from there"


class Web:
    """Ask vendors.

    Args:
        say: hears what goes wrong and is tried again.

    Raises:
        ImageError: the library for it is not installed.
    """

    def __init__(self, say: Say) -> None:
        try:
            import requests  # only those who download images need it
        except ImportError as error:
            raise ImageError(
                "downloading images needs the Python package requests, which is not installed",
                remedy="pip install 'latentvirt[images]'",
            ) from error
        self._requests = requests
        self._session = requests.Session()
        # A compressed answer has another length than the file, and no ranges.
        self._session.headers["Accept-Encoding"] = "identity"
        self._say = say

    def patiently(self, do: Callable[[], T]) -> T:
        """Do something until it is done, or was tried too often.

        Raises:
            ImageError: it failed, and trying again did not help or would not.
        """
        tries, pause = 0, FIRST_PAUSE_S
        while True:
            try:
                return do()
            except Passing as error:
                if error.forward:
                    tries, pause = 0, FIRST_PAUSE_S
                tries += 1
                if tries == TRIES:
                    raise
                wait = min(pause if error.pause is None else error.pause, LONGEST_PAUSE_S)
                self._say(f"{error.what}; trying again in {wait:g} s")
                time.sleep(wait)
                pause *= 2

    def data(self, url: str, *, only_safe: bool = True) -> bytes:
        """Read a page or a list.

        Args:
            url: of it.
            only_safe: whether it must not have come over plain HTTP if it was asked for over HTTPS.

        Raises:
            ImageError: it cannot be had.
        """
        return self.patiently(lambda: self._data(url, only_safe))

    def _data(self, url: str, only_safe: bool) -> bytes:
        with self.open(url) as response:
            if only_safe and url.startswith("https:") and not response.url.startswith("https:"):
                raise ImageError(
                    f"{without_password(url)} leads to {without_password(response.url)}, which anybody on "
                    "the way can change",
                    remedy="name a mirror with https in a catalogue of your own",
                )
            data = bytearray()
            for chunk in self.chunks(response):
                data += chunk
                if len(data) > LONGEST_TEXT_BYTES:
                    raise ImageError(f"{without_password(url)} is no text: it does not end")
        return bytes(data)

    def open(
        self, url: str, headers: Mapping[str, str] | None = None, *, also: frozenset[int] = frozenset()
    ) -> requests.Response:
        """Ask for something, whose bytes are then read with `chunks`.

        Args:
            url: of it.
            headers: of the request.
            also: answers other than 200 that are expected.

        Raises:
            Passing: it cannot be had now.
            ImageError: it cannot be had.
        """
        where = without_password(url)
        try:
            response = self._session.get(
                url, headers=dict(headers or {}), stream=True, timeout=(CONNECT_S, SILENT_S)
            )
        except self._requests.RequestException as error:
            raise self._failed(where, error) from error
        if response.status_code == OK or response.status_code in also:
            return response
        response.close()
        said = f"{where} answers {response.status_code} {response.reason or ''}".rstrip()
        if response.status_code in MAY_PASS:
            raise Passing(said, remedy=LATER, pause=_seconds(response.headers.get("Retry-After")))
        raise ImageError(
            said,
            remedy="the vendor may have moved it: look there with a browser, and name its new place in a "
            "catalogue of your own",
        )

    def chunks(self, response: requests.Response) -> Iterator[bytes]:
        """Read what comes.

        Raises:
            Passing: the connection broke, or nothing came for too long.
        """
        try:
            yield from response.iter_content(CHUNK_BYTES)
        except self._requests.RequestException as error:
            raise self._failed(without_password(response.url), error) from error

    def _failed(self, where: str, error: Exception) -> ImageError:
        kinds = self._requests.exceptions
        if isinstance(error, kinds.SSLError):
            return ImageError(
                f"{where} cannot prove who it is: {_root(error)}",
                remedy="check the clock and the certificates (ca-certificates) of this machine",
            )
        if isinstance(error, kinds.Timeout) or "timed out" in str(error).lower():
            return Passing(f"{where} was silent for too long", remedy=LATER)
        if isinstance(error, (kinds.ConnectionError, kinds.ChunkedEncodingError)):
            return Passing(f"the connection to {where} failed: {_root(error)}", remedy=LATER)
        return ImageError(f"{where} cannot be read: {_root(error)}", remedy="correct the catalogue")


def _root(error: BaseException) -> str:
    """Say what it was in the end; the outer ones repeat the inner ones."""
    while True:
        inner = (
            error.__cause__
            or error.__context__
            or next((one for one in error.args if isinstance(one, BaseException)), None)
        )
        if inner is None:
            return str(error) or type(error).__name__
        error = inner


def _seconds(given: str | None) -> float | None:
    """Read how long to wait; a date is left to our own pauses."""
    return float(given) if given is not None and given.isascii() and given.isdigit() else None
