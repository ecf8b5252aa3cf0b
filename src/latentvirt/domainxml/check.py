"""What can be known of a person's XML without any host: all that `buildbot checkconfig` can say."""

from __future__ import annotations

from latentvirt.domainxml.disks import disks_of
from latentvirt.domainxml.freshness import problems_in
from latentvirt.domainxml.parse import BYTES_PER_UNIT, Element, line_of, parse, unit_of
from latentvirt.domainxml.problems import refuse
from latentvirt.domainxml.remembering import remembered
from latentvirt.errors import BadXML, ConfigError
from latentvirt.names import check_domain_name
from latentvirt.showing import shown


@remembered
def check(
    xml: str,
    *,
    base_image: str | None,
    hd_image: str | None,
    allow_shared: frozenset[str],
    own_uuid: bool = True,
) -> None:
    """Refuse XML that no start could use, or none freshly.

    Args:
        xml: the domain's XML.
        base_image: what the system disk's overlay stands on; None leaves freshness to the person.
        hd_image: path of the system disk's image.
        allow_shared: names of what may outlive a start.
        own_uuid: whether each start gets a UUID of its own, as domains given as XML do.

    Raises:
        BadXML: it is malformed, or lacks what the other arguments need; with the line.
        NotFresh: the guest can write to something that outlives the start; with the line and the way out.
    """
    root = parse(xml)
    _check_root(root)
    _check_size(root)
    if base_image is None:
        return
    disks = disks_of(root, hd_image=hd_image, allow_shared=allow_shared)
    if not any(disk.system for disk in disks):
        raise BadXML(
            f"the XML has no disk that could be replaced by an overlay of base_image {base_image!r}",
            line=line_of(root),
            remedy="add a <disk> that the guest may write to, or leave base_image out",
        )
    refuse(problems_in(root, allow_shared=allow_shared, own_uuid=own_uuid))


def _check_root(root: Element) -> None:
    if not root.get("type"):
        raise BadXML(
            "<domain> has no type",
            line=line_of(root),
            remedy="write <domain type='kvm'>, or type='qemu' for emulation",
        )
    names = root.findall("name")
    if len(names) > 1:
        raise BadXML("the domain has two names", line=line_of(names[1]), remedy="keep one <name>")
    if names and not (names[0].text or "").strip():
        raise BadXML("<name> is empty", line=line_of(names[0]), remedy="write a name, or remove the element")
    if names:
        try:
            check_domain_name((names[0].text or "").strip(), "the domain's name")
        except ConfigError as error:
            raise BadXML(error.what, line=line_of(names[0]), remedy=error.remedy) from error


def _check_size(root: Element) -> None:
    for tag, example in (("memory", "<memory unit='GiB'>2</memory>"), ("vcpu", "<vcpu>2</vcpu>")):
        for element in root.iterfind(tag):
            text = str(element.xpath("string()")).strip()
            if not text.isdecimal():
                raise BadXML(
                    f"<{tag}> is {shown(text)}, which is no number",
                    line=line_of(element),
                    remedy=f"write as in {example}",
                )
            if unit_of(element) not in BYTES_PER_UNIT:
                raise BadXML(
                    f"<{tag}> has the unit {shown(element.get('unit'))}, which libvirt does not know",
                    line=line_of(element),
                    remedy="write unit='MiB' or unit='GiB'",
                )
