"""What a host can do, read from what libvirt says of it."""

from __future__ import annotations

import pytest

from domainxml.support import UUID, capabilities, capabilities_text
from latentvirt.capabilities import HostCapabilities, cpu_features_of, read_capabilities
from latentvirt.domainxml import generate, parse
from latentvirt.errors import HostError
from latentvirt.sizes import Size


def read(
    host: str | None, domain: str, kvm: str | None = None, features: frozenset[str] = frozenset()
) -> HostCapabilities:
    """Read stored answers."""
    return read_capabilities(
        host and capabilities_text(host),
        capabilities_text(domain),
        kvm_domain_capabilities_xml=kvm and capabilities_text(kvm),
        host_cpu_features=features,
    )


def test_a_pc_gets_the_newer_chipset_with_its_version() -> None:
    """A PC's domain is a q35 of the version that the host has for that architecture."""
    assert read("host", "qemu") == HostCapabilities(
        arch="x86_64",
        machine="pc-q35-7.2",
        emulator="/usr/bin/qemu-system-x86_64",
        kvm=False,
        vmgenid=True,
        uefi=True,
        maximum_cpu=True,
        panic_models=("isa",),
        security_models=("selinux", "dac"),
        cpu=read("host", "qemu").cpu,
    )


def test_a_changed_processor_is_seen_and_its_wording_is_not() -> None:
    """A memory image goes with the processor: a new feature makes another, the order of words does not."""

    def cpu(*inside: str) -> str:
        host = f"<capabilities><host><cpu><arch>x86_64</arch>{''.join(inside)}</cpu></host></capabilities>"
        return read_capabilities(
            host, capabilities_text("qemu"), kvm_domain_capabilities_xml=None, host_cpu_features=frozenset()
        ).cpu

    model, vmx = "<model>Haswell</model>", "<feature name='vmx'/>"
    tsc = "<counter name='tsc' frequency='%d'/>"
    assert cpu(model, vmx) == cpu("\n", vmx, model) != ""
    assert cpu(model, vmx) != cpu(model)
    assert cpu(model, vmx, tsc % 2400000000) == cpu(model, vmx, tsc % 2399999000)
    assert read(None, "qemu").cpu == ""


def test_without_the_hosts_own_answer_libvirts_machine_is_taken() -> None:
    """Domain capabilities alone are enough to generate a domain."""
    assert read(None, "qemu").machine == "pc-i440fx-7.2"


@pytest.mark.parametrize(
    ("domain", "kvm", "features", "works"),
    [
        ("qemu", "kvm", {"vmx"}, True),
        ("qemu", "kvm", {"svm", "lm"}, True),
        ("qemu", "kvm", {"hypervisor"}, False),
        ("qemu", None, {"vmx"}, False),
        ("aarch64", "kvm", set(), True),
        ("aarch64", None, set(), False),
    ],
)
def test_kvm_is_used_only_where_it_works(
    domain: str, kvm: str | None, features: set[str], works: bool
) -> None:
    """On a PC, an offer of KVM counts only with the processor's support for it."""
    assert read("host", domain, kvm, frozenset(features)).kvm is works


@pytest.mark.parametrize(("virt_type", "type_"), [("auto", "qemu"), ("kvm", "kvm"), ("qemu", "qemu")])
def test_a_person_can_override_the_choice(virt_type: str, type_: str) -> None:
    """virt_type decides what a generated domain runs on, whatever the host seems to offer."""
    xml = generate(
        name="a", uuid=UUID, capabilities=capabilities(), size=Size(), network="user", virt_type=virt_type
    )
    assert parse(xml).get("type") == type_


def test_a_host_with_fewer_talents_gets_a_plainer_domain() -> None:
    """What a host lacks is not asked of it."""
    plain = HostCapabilities(arch="x86_64", machine="pc", emulator="/qemu", kvm=False)
    root = parse(
        generate(name="a", uuid=UUID, capabilities=plain, size=Size(), network="user", virt_type="auto")
    )
    assert [root.find(path) for path in ("genid", "cpu", "devices/panic")] == [None, None, None]


def test_panic_devices_that_libvirt_lists_are_believed() -> None:
    """Where libvirt names the models of panic device, no other is used."""
    text = capabilities_text("qemu").replace(
        "<features>", "<devices><panic supported='yes'><enum name='model'/></panic></devices><features>"
    )
    assert (
        read_capabilities(
            None, text, kvm_domain_capabilities_xml=None, host_cpu_features=frozenset()
        ).panic_models
        == ()
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<domainCapabilities/>", "no <arch>"),
        ("<capabilities/>", "<domainCapabilities> was expected"),
        ("<domainCapabilities>", "cannot be read"),
    ],
)
def test_an_answer_that_makes_no_sense_is_the_hosts_fault(text: str, words: str) -> None:
    """A host that answers nonsense is said to have done so."""
    with pytest.raises(HostError, match=words):
        read_capabilities(None, text, kvm_domain_capabilities_xml=None, host_cpu_features=frozenset())


def test_processor_features_are_read_from_either_answer() -> None:
    """The processor's support for KVM is found in what virsh prints of host and of kvm."""
    assert "vmx" in cpu_features_of(capabilities_text("host"))
    assert cpu_features_of(capabilities_text("kvm")) == {"vmx"}
