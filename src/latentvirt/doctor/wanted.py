"""What is wanted of a host, as far as somebody said so: by a master.cfg, or on the command line."""

from __future__ import annotations

import attrs

from latentvirt.config import Connection, Image


@attrs.frozen(kw_only=True)
class MasterAddress:
    """Where guests of one kind of network look for their master.

    Args:
        network: ``user``, or the name of a libvirt network; empty if that is not known before a build.
        given: the host's part of ``masterFQDN``; None if it was left out.
        port: the port that they connect to; None if the system chooses one.
        interface: the address that the master listens at; empty for all.
        sure: whether the guests are told it in any case; others may have an image that knows it already.
    """

    network: str
    given: str | None
    port: int | None
    interface: str = ""
    sure: bool = True


@attrs.frozen(kw_only=True)
class NamedImage:
    """An image of this machine's that is known by its name.

    Args:
        image: which.
        archs: architectures that its VMs' hosts may have; empty for any.
        workers: names of those that start from it.
    """

    image: Image
    archs: frozenset[str]
    workers: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Wanted:
    """What is wanted of one host.

    Args:
        connection: the host.
        folders: image folders that are named.
        images: paths of images that VMs stand on, on the host.
        named_images: images that are brought to the host from this machine, by name.
        varying: names of workers whose base image depends on the build.
        networks: libvirt networks that are named.
        domains: names of those that a person must have defined.
        kvm: names of workers whose VMs must have KVM.
        helper: names of workers that cannot do without the guest helper.
        addresses: where guests look for their master.
        named: whether all this was said by somebody; else it is only what is usual.
    """

    connection: Connection
    folders: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    named_images: tuple[NamedImage, ...] = ()
    varying: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    kvm: tuple[str, ...] = ()
    helper: tuple[str, ...] = ()
    addresses: tuple[MasterAddress, ...] = ()
    named: bool = True

    @classmethod
    def usual(cls, connection: Connection, folders: tuple[str, ...] = ()) -> Wanted:
        """Want of a host what is usual, where no master.cfg says more.

        Args:
            connection: the host.
            folders: image folders that the person named; without one the usual one is looked at.
        """
        return cls(connection=connection, folders=folders or (connection.images,), named=bool(folders))

    @property
    def uri(self) -> str:
        """The host's name."""
        return self.connection.uri
