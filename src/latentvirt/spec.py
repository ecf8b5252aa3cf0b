"""All that one build needs of a VM, rendered: the argument that everything below the worker takes."""

from __future__ import annotations

import functools
import posixpath
from typing import Literal

import attrs

from latentvirt.config import Image
from latentvirt.devices import USER_NETWORK, Disk, Nic
from latentvirt.sizes import Size

Kind = Literal["auto", "predefined", "xml", "generated"]
IdentityMode = Literal["auto", "channel", "static", "metadata"]

BY_CHANNEL: tuple[IdentityMode, ...] = ("auto", "channel")
"""Those in which a guest can be told who it is over the channel."""

VirtType = Literal["auto", "kvm", "qemu"]
StartMode = Literal["auto", "boot", "thaw"]


REMEMBERED_FOLDERS = 1024
"""Of how many images: each start asks for each host's."""


@functools.lru_cache(maxsize=REMEMBERED_FOLDERS)
def image_folder(hd_image: str | None, base_image: str | None) -> str | None:
    """Say in which folder on the host our own directory goes; None if no image is named."""
    image = hd_image or base_image
    return posixpath.dirname(image) if image else None


def folder_of_copies(hd_image: str | None, images: str) -> str:
    """Say in which folder on the host the copy of an `Image` goes.

    Args:
        hd_image: path of the disk image that a build gets; None if none is named.
        images: the host's own folder.
    """
    return image_folder(hd_image, None) or images


def _as_nic(given: str | Nic) -> Nic:
    return Nic(given) if isinstance(given, str) else given


@attrs.frozen(kw_only=True)
class MachineSpec:
    """Describe one VM, comparably: equal specs can take each other's VMs.

    Args:
        worker: name of the Buildbot worker; also the domain's name where it is predefined.
        kind: where the domain's description comes from; ``auto`` looks whether one is predefined, and
            generates one otherwise.
        xml: the person's domain XML; only for kind ``xml``.
        hd_image: path on the host of the disk image that is replaced by an overlay.
        base_image: path on the host of the read-only image that the overlay stands on; None starts the
            domain as it is.
        image: what `base_image` is to be a copy of; None if it is on the host already.
        images: the folder on the host for our own directory; None for that of the images named.
        base_format: ``qcow2``, ``raw``... as in libvirt's XML; None asks the host.
        size: of a generated domain.
        network: a generated domain's first network card; a libvirt network's name, or ``user``, will do.
        virt_type: ``kvm``, ``qemu`` (emulation), or ``auto``: kvm where it really works.
        identity: how the guest learns who it is.
        allow_shared: names of things that may outlive a start although the guest writes to them: a disk's
            target (``vdb``), a folder's target directory, ``nvram``, ``tpm``, ``nvdimm``, ``shmem``,
            ``qemu:commandline``.
        start: ``boot``, ``thaw`` (boot only to make the frozen image), or ``auto``: thaw where that works.
        disks: those that it has besides, empty at each start, as `read_disks` returns them.
        networks: the network cards that it has besides.
        cloud_init: what a person adds, as YAML, to what cloud-init is told to do in a stock image; None for
            images that are ready for workers.
        seed: path on the host of the disk that tells cloud-init so; None if it has still to be brought there.
    """

    worker: str
    kind: Kind
    xml: str | None = None
    hd_image: str | None = None
    base_image: str | None = None
    image: Image | None = None
    images: str | None = None
    base_format: str | None = None
    size: Size = attrs.field(factory=Size)
    network: Nic = attrs.field(default=Nic(USER_NETWORK), converter=_as_nic)
    virt_type: VirtType = "auto"
    identity: IdentityMode = "auto"
    allow_shared: frozenset[str] = frozenset()
    start: StartMode = "auto"
    disks: tuple[Disk, ...] = ()
    networks: tuple[Nic, ...] = ()
    cloud_init: str | None = attrs.field(default=None, repr=False)
    seed: str | None = None

    @property
    def folder(self) -> str | None:
        """The folder on the host in which our own directory goes; None if no image is named."""
        return self.images or image_folder(self.hd_image, self.base_image)

    @property
    def own_cards(self) -> int:
        """How many of its network cards, from the last one on, are not as a person's XML says."""
        return len(self.networks) + (self.kind == "generated")

    @property
    def own_uuid(self) -> bool:
        """Whether each start gets a UUID of its own; a predefined domain keeps that of its definition."""
        return self.kind != "predefined"

    @property
    def proven(self) -> bool:
        """Whether freshness is ours to prove; without a base image it is the person's affair."""
        return self.base_image is not None or self.image is not None

    def with_copy(self, path: str, folder: str) -> MachineSpec:
        """Return the same, now that its image has been copied to a host.

        Args:
            path: where the copy lies there.
            folder: the folder there for our own directory.
        """
        given = self.image.format if self.image is not None else None
        return attrs.evolve(self, base_image=path, base_format=given or self.base_format, images=folder)
