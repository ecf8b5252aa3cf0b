"""Volumes filled and read over libvirt's streams; all of it blocks, for a transfer's thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import libvirt

from latentvirt.host.hauling import Haul
from latentvirt.host.storage import volume_at

PACKET_BYTES = 262_120
"""What a message of libvirt's holds; more goes in several."""

PROBE_TRIES = 20
PROBE_PAUSE_S = 0.1
"""Another master may be looking into the same folder just now, for which it needs a pool on it."""

_LENGTH = 2
"""Where a file's length stands in what libvirt tells of a volume, when asked for it."""

_GONE = {libvirt.VIR_ERR_NO_STORAGE_VOL, libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_RPC}


def upload(
    connection: Any, pool: str, name: str, read: Callable[[int], bytes], length: int, haul: Haul[None]
) -> None:
    """Fill a volume; see `Host.upload`."""
    volume = connection.storagePoolLookupByName(pool).storageVolLookupByName(name)
    stream = connection.newStream(0)
    volume.upload(stream, 0, length, 0)
    try:
        while True:
            haul.check()
            data = read(PACKET_BYTES)
            if not data:
                break
            rest = memoryview(data)
            while rest:
                sent = stream.send(bytes(rest))
                rest = rest[sent:]
                haul.note(sent)
        stream.finish()  # what could not be written is told here at the latest
    except BaseException:
        _abort(stream)
        raise


def download(connection: Any, pool: str, name: str, write: Callable[[bytes], object], haul: Haul[int]) -> int:
    """Read a volume; see `Host.download`."""
    volume = connection.storagePoolLookupByName(pool).storageVolLookupByName(name)
    return _receive(_begun(connection, volume, haul), write, haul)


def download_image(
    connection: Any, path: str, probe_pool: str, write: Callable[[bytes], object], haul: Haul[int]
) -> int:
    """Read an image file; see `Host.download_image`."""
    for tries_left in reversed(range(PROBE_TRIES)):
        haul.check()
        try:
            # The daemon holds the file open from here on: others need not wait for the pool until the end.
            with volume_at(connection, path, probe_pool) as volume:
                stream = _begun(connection, volume, haul)
            break
        except libvirt.libvirtError as error:
            if not tries_left or error.get_error_code() in _GONE:
                raise
            time.sleep(PROBE_PAUSE_S)
    return _receive(stream, write, haul)


def _begun(connection: Any, volume: Any, haul: Haul[int]) -> Any:
    stream = connection.newStream(0)
    haul.total = int(volume.infoFlags(libvirt.VIR_STORAGE_VOL_GET_PHYSICAL)[_LENGTH])
    volume.download(stream, 0, 0, 0)
    return stream


def _receive(stream: Any, write: Callable[[bytes], object], haul: Haul[int]) -> int:
    try:
        while data := stream.recv(PACKET_BYTES):
            write(data)
            haul.note(len(data))
        stream.finish()
    except BaseException:
        _abort(stream)
        raise
    return haul.moved


def _abort(stream: Any) -> None:
    try:
        stream.abort()
    except libvirt.libvirtError:
        pass  # it has ended, or the connection under it is gone
