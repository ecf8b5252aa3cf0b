"""How often each build request was tried; a build is not tried without end."""

from __future__ import annotations

from collections import OrderedDict

REMEMBERED_BUILDS = 10_000
TRIES_OF_A_BUILD = 5


class Tries:
    """Count the starts for each build request, and remember the latest requests."""

    def __init__(self) -> None:
        self._tries: OrderedDict[int, int] = OrderedDict()

    def count(self, request: int) -> int:
        """Count one more start.

        Args:
            request: number of the build request.

        Returns:
            Which one this is, from 1.
        """
        tries = self._tries.pop(request, 0) + 1
        self._tries[request] = tries
        while len(self._tries) > REMEMBERED_BUILDS:
            self._tries.popitem(last=False)
        return tries

    def take_back(self, request: int | None) -> None:
        """Do not count the latest start: there was no room for it.

        Args:
            request: number of the build request; None if there is none.
        """
        if request is not None and request in self._tries:
            self._tries[request] -= 1
