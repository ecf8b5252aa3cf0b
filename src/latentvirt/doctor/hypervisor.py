"""Whether a host's libvirt, QEMU and KVM are such that VMs run well there."""

from __future__ import annotations

from latentvirt.capabilities import HostCapabilities, is_x86
from latentvirt.doctor.finding import Finding, fine, problem, warning
from latentvirt.doctor.shell import Part, Shell
from latentvirt.host import Versions

SELINUX, APPARMOR = "selinux", "apparmor"

VERSION_PARTS = 1000
"""libvirt writes a version as major * 1,000,000 + minor * 1,000 + release."""

TRIED_LIBVIRT, TRIED_QEMU = (9, 0), (7, 2)
"""The oldest versions that latentvirt is tried with."""

UEFI_LIBVIRT = (8, 1)
"""Since when libvirt can start a UEFI guest with variables as they are in the template."""


def version_findings(uri: str, versions: Versions) -> list[Finding]:
    """Compare a host's versions with those that latentvirt is tried with."""
    libvirt, qemu = _parts(versions.libvirt), _parts(versions.hypervisor)
    found = []
    if libvirt[:2] < TRIED_LIBVIRT:
        uefi = " UEFI guests do not start with it." if libvirt[:2] < UEFI_LIBVIRT else ""
        found.append(
            warning(
                "libvirt-old",
                uri,
                f"libvirt {_dotted(libvirt)} is older than {_dotted(TRIED_LIBVIRT)}, the oldest that "
                "latentvirt "
                f"is tried with.{uefi}",
                "upgrade the host's system, or see whether all you need works",
            )
        )
    if qemu[:2] < TRIED_QEMU:
        found.append(
            warning(
                "qemu-old",
                uri,
                f"QEMU {_dotted(qemu)} is older than {_dotted(TRIED_QEMU)}, the oldest that latentvirt is "
                "tried "
                "with",
                "upgrade the host's system, or see whether all you need works",
            )
        )
    return found or [fine("versions", uri, f"libvirt {_dotted(libvirt)} and QEMU {_dotted(qemu)}")]


def _parts(number: int) -> tuple[int, ...]:
    rest, release = divmod(number, VERSION_PARTS)
    return (*divmod(rest, VERSION_PARTS), release)


def _dotted(parts: tuple[int, ...]) -> str:
    return ".".join(map(str, parts))


def kvm_finding(
    uri: str,
    capabilities: HostCapabilities,
    shell: Shell | None,
    qemu: tuple[int, int] | None,
    needed: tuple[str, ...],
) -> Finding:
    """Say whether KVM works, and if not, why.

    Args:
        uri: the host.
        capabilities: what libvirt says that it can run.
        shell: what its shell says; None if it was not asked.
        qemu: whom QEMU runs as; None if that is whoever runs libvirt.
        needed: workers whose VMs must have KVM.
    """
    device = shell.kvm if shell is not None else None
    closed = shell is not None and device is not None and not _is_open(device, shell, qemu)
    if capabilities.kvm and not closed:
        return fine("kvm", uri, f"KVM works ({capabilities.arch})")
    tell = problem if needed else warning
    cost = f"; {', '.join(needed)} must have it" if needed else ", and emulated VMs are many times slower"
    hollow = shell is not None and device is not None and not shell.virtualisation
    if hollow and is_x86(capabilities.arch):
        slow = "; QEMU's user may not open it, for which libvirt 9 takes 15 s more at each start"
        return tell(
            "kvm-hollow",
            uri,
            "there is a /dev/kvm, but the processor has neither vmx nor svm, so KVM runs no ordinary "
            f"guest{cost}{slow if closed else ''}",
            "if this is a VM itself: let its host pass the feature on (cpu mode='host-passthrough', "
            "nested=1); else keep the device out",
        )
    if closed:
        return tell(
            "kvm-closed",
            uri,
            f"QEMU's user may not open KVM's device {device}{cost}",
            "put that user into the device's group, kvm (usermod -a -G kvm libvirt-qemu on Debian), and see "
            "that the group may read and write: chgrp kvm /dev/kvm; chmod 660 /dev/kvm",
        )
    return tell(
        "kvm-missing",
        uri,
        f"KVM does not work there{cost}",
        "switch virtualisation (VT-x, AMD-V) on in the firmware, modprobe kvm_intel or kvm_amd, and see what "
        "virt-host-validate says",
    )


def _is_open(device: Part, shell: Shell, qemu: tuple[int, int] | None) -> bool:
    uid, groups = (shell.uid, shell.groups) if qemu is None else (qemu[0], (qemu[1], *shell.qemu_groups))
    return device.acl or bool(device.error) or all(device.lets(right, uid, groups) for right in "rw")


def security_finding(uri: str, capabilities: HostCapabilities) -> Finding | None:
    """Say where a host's security module tells what it refused; None if there is none."""
    if SELINUX in capabilities.security_models:
        look, module = "ausearch -m avc -ts recent", "SELinux"
    elif APPARMOR in capabilities.security_models:
        look, module = "journalctl -k -g DENIED", "AppArmor"
    else:
        return None
    return fine(
        "security-module",
        uri,
        f"{module} confines VMs; if one cannot read its image although the modes allow it, see: {look}",
    )
