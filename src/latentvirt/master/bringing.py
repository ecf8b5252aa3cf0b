"""Which images a master.cfg's workers bring to which hosts, for `latentvirt image push`."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from latentvirt.config import Connection, Image
from latentvirt.errors import LatentvirtError
from latentvirt.images.pushing import Errand
from latentvirt.master.arguments import Arguments
from latentvirt.master.baseimages import archs_of, read_image, written_image
from latentvirt.master.depending import depends
from latentvirt.master.reading import workers_in
from latentvirt.placement import HostView, Limits, Wish, explain
from latentvirt.spec import folder_of_copies


def errands_in(path: str) -> tuple[list[Errand], list[str]]:
    """List what the workers of a master.cfg bring to the hosts that their VMs may start on.

    Args:
        path: of the file, or of the master's directory that it is in.

    Returns:
        Each image, folder and host once; and the names of workers of which only a build says that.

    Raises:
        ConfigError: as for `latentvirt.master.reading.hosts_in`.
    """
    found: dict[tuple[str, str, Image], Errand] = {}
    unknown = []
    for name, arguments in workers_in(path)[0]:
        if depends(arguments.hd_image) or depends(written_image(arguments.base_image)):
            unknown.append(name)
            continue
        image = read_image(arguments.base_image, stock=arguments.cloud_init is not None)
        if isinstance(image, Image):
            for errand in _errands_of(name, arguments, image):
                key = (errand.connection.uri, errand.folder, image)
                known = found.setdefault(key, errand)
                either = known.archs | errand.archs if known.archs and errand.archs else frozenset()
                found[key] = attrs.evolve(known, archs=either)
    return list(found.values()), unknown


def _errands_of(worker: str, arguments: Arguments, image: Image) -> Iterator[Errand]:
    try:
        need = arguments.static_need(worker)
    except LatentvirtError:
        need = None  # each build says what is wrong with it
    wish = Wish(arch=archs_of(image)) if need is None else need.wish
    for connection in arguments.hosts.connections:
        if not connection.drain and explain([_as_if_empty(connection)], wish) is None:
            yield Errand(
                connection, folder_of_copies(arguments.hd_image, connection.images), image, wish.arch
            )


def _as_if_empty(connection: Connection) -> HostView:
    return HostView(
        uri=connection.uri,
        labels=dict(connection.labels),
        limit=Limits(
            slots=connection.slots,
            memory=connection.memory_mib,
            vcpus=connection.vcpus,
            disk=connection.disk_mib,
        ),
    )
