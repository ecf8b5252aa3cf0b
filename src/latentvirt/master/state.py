"""What the hub must still know after a crash, kept in Buildbot's object state."""

from __future__ import annotations

import hashlib
from typing import Any

import attrs

from latentvirt.names import OWNER_PATTERN, new_owner

_CLASS = "latentvirt.Hub"
_OWNER = "owner"
_PLACES = "places"


@attrs.define(eq=False)
class HubState:
    """Hold the owner's id and the places where its things may lie.

    Args:
        owner: id of this master's installation.
    """

    owner: str
    _master: Any
    _object: int
    _places: set[tuple[str, str]]

    @classmethod
    async def load(cls, master: Any) -> HubState:
        """Read the state, or begin one.

        It is bound to the master's name, which Buildbot makes of host and base directory: a copy of the
        database that is used elsewhere is another owner, and never ends this one's VMs.

        Args:
            master: the Buildbot master.
        """
        state = master.db.state
        # A digest, since the column holds 128 characters and base directories may be longer.
        installation = hashlib.sha256(str(master.name).encode()).hexdigest()[:32]
        number = await state.getObjectId(f"latentvirt {installation}", _CLASS)
        owner = await state.atomicCreateState(number, _OWNER, new_owner)
        if not isinstance(owner, str) or not OWNER_PATTERN.fullmatch(owner):
            owner = new_owner()
            await state.setState(number, _OWNER, owner)
        places = await state.getState(number, _PLACES, [])
        return cls(owner, master, number, {(str(uri), str(folder)) for uri, folder in places})

    def folders(self, uri: str) -> list[str]:
        """List the image folders on a host in which this owner has had a directory."""
        return sorted(folder for where, folder in self._places if where == uri)

    async def remember(self, uri: str, folder: str) -> None:
        """Note a place before anything is put there."""
        if (uri, folder) not in self._places:
            self._places.add((uri, folder))
            await self._master.db.state.setState(self._object, _PLACES, sorted(self._places))
