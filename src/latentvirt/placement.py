"""Which host a VM goes to: views of the hosts in, a choice out; nothing is asked, and nothing is kept."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import attrs

from latentvirt.amounts import amount_text

STANDBY_FITS = 2
"""A host's readiness if a VM that the build can take waits there."""

FROZEN_FITS = 1
"""A host's readiness if a memory image lies there that the build's VM can be thawed from."""


@attrs.frozen
class Amounts:
    """How much VMs use.

    Args:
        slots: places for VMs.
        memory: MiB.
        vcpus: virtual processors.
        disk: MiB.
    """

    slots: int = 0
    memory: int = 0
    vcpus: float = 0.0
    disk: int = 0

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(
            self.slots + other.slots,
            self.memory + other.memory,
            self.vcpus + other.vcpus,
            self.disk + other.disk,
        )

    def __sub__(self, other: Amounts) -> Amounts:
        return Amounts(
            self.slots - other.slots,
            self.memory - other.memory,
            self.vcpus - other.vcpus,
            self.disk - other.disk,
        )

    def fits(self, limit: Limits) -> bool:
        """Say whether that much is within a host's limits."""
        return room_left(self, NOTHING, limit) >= 0


def total(parts: Iterable[Amounts]) -> Amounts:
    """Add up what VMs use.

    Args:
        parts: of each.
    """
    # As in `room_left`, no objects on the way.
    slots, memory, vcpus, disk = 0, 0, 0.0, 0
    for part in parts:
        slots += part.slots
        memory += part.memory
        vcpus += part.vcpus
        disk += part.disk
    return Amounts(slots, memory, vcpus, disk)


@attrs.frozen
class Limits:
    """How much VMs may use on a host; None is no limit, or one that is not known.

    Args:
        slots: places for VMs.
        memory: MiB.
        vcpus: virtual processors, the over-commit factor applied.
        disk: MiB.
    """

    slots: int | None = None
    memory: int | None = None
    vcpus: float | None = None
    disk: int | None = None


@attrs.frozen(kw_only=True)
class HostView:
    """What is known of a host when a place is looked for.

    Args:
        uri: names the host.
        labels: what its configuration says of it.
        arch: of its guests, such as ``x86_64``; None if it is not known yet: then anything may fit.
        limit: how much VMs may use there.
        used: how much they do: everyone's domains, and what is reserved for starts under way. A standby
            that fits the build is among them; one that does not may be left out, since it gives way.
        usable: whether starts may go there now.
        why_not: why not: it rests, is quarantined, is drained; empty if it is usable.
        readiness: `STANDBY_FITS`, `FROZEN_FITS` or 0, for the build that a place is looked for.
    """

    uri: str
    labels: Mapping[str, str] = attrs.field(factory=dict)
    arch: str | None = None
    limit: Limits = Limits()
    used: Amounts = Amounts()
    usable: bool = True
    why_not: str = ""
    readiness: int = 0


@attrs.frozen(kw_only=True)
class Wish:
    """What a build's VM needs of a host.

    Args:
        memory: MiB.
        vcpus: virtual processors.
        disk: MiB; 0 if it is not known.
        arch: those that are allowed; empty for any.
        labels: by label, the values that are allowed.
    """

    memory: int = 0
    vcpus: float = 0.0
    disk: int = 0
    arch: frozenset[str] = frozenset()
    labels: Mapping[str, Collection[str]] = attrs.field(factory=dict, hash=False)

    @property
    def amounts(self) -> Amounts:
        """How much its VM will use."""
        return Amounts(1, self.memory, self.vcpus, self.disk)


@attrs.frozen
class Rule:
    """Which host is the best of those with room.

    Args:
        spread: whether it is the one with the most room left; else the one with the least, so that other
            hosts keep room for large VMs.
        prefer: labels and values of hosts that come first; others come after them.
    """

    spread: bool = True
    prefer: Mapping[str, str] = attrs.field(factory=dict)


SPREAD = Rule()
"""What is done unless a person says otherwise."""

NOTHING = Amounts()
"""What a VM takes that is there already."""


def room_left(used: Amounts, need: Amounts, limit: Limits) -> float:
    """Say how much room a host has with a VM: the smallest share left of slots, memory and vCPUs.

    Disk only has to suffice: it is filled by what stays, images above all, and would hide the rest.

    Args:
        used: how much VMs use there without it.
        need: how much it uses.
        limit: how much they may use.

    Returns:
        1 where nothing is used or limited; less than 0 if they would use more than they may, disk included.
    """
    # Each host is looked at for each start, a thousand times in some farms: no loop, no objects.
    room = 1.0
    if (slots := limit.slots) is not None:
        left: float = slots - used.slots - need.slots
        room = left / slots if slots else left
    if (memory := limit.memory) is not None:
        left = memory - used.memory - need.memory
        share = left / memory if memory else left
        if share < room:
            room = share
    if (vcpus := limit.vcpus) is not None:
        left = vcpus - used.vcpus - need.vcpus
        share = left / vcpus if vcpus else left
        if share < room:
            room = share
    if (disk := limit.disk) is not None and (left := disk - used.disk - need.disk) < 0:
        share = left / disk if disk else left
        if share < room:
            room = share
    return room


def choose(
    hosts: Sequence[HostView], wish: Wish, rule: Rule = SPREAD, avoid: Collection[str] = ()
) -> HostView | None:
    """Choose the host for a start.

    Hosts come into question if they are usable, allowed by labels and architecture, and within their limits
    with the VM. A standby's room is counted as used already, so that a host with one needs no more. Of these
    the best has, in this order: the most of the preferred labels; the highest readiness; with the VM, the
    most room left, or the least if the rule is to pack; the fewest VMs, or the most; the first place in the
    list.

    Args:
        hosts: the hosts, in the order in which a person named them.
        wish: what the VM needs.
        rule: which is the best.
        avoid: URIs of those that are not to be tried, or not again.

    Returns:
        The host; None if there is no room now.
    """
    best, best_rank = None, (0, 0, 0.0, 0)
    need, prefer = wish.amounts, list(rule.prefer.items())
    sign = 1 if rule.spread else -1
    for host in hosts:
        if not host.usable:
            continue
        used, readiness = host.used, host.readiness
        room = room_left(used, NOTHING if readiness == STANDBY_FITS else need, host.limit)
        if room < 0 or host.uri in avoid or not _allows(host, wish):
            continue
        liked = 0
        for label, value in prefer:
            liked += host.labels.get(label) == value
        rank = (liked, readiness, sign * room, -sign * used.slots)
        if best is None or rank > best_rank:
            best, best_rank = host, rank
    return best


def roomiest(
    hosts: Sequence[HostView], wish: Wish, current: str = ""
) -> tuple[HostView, float, float | None] | None:
    """Find the usable host where a VM will soonest have room, of those that could take it if empty.

    Args:
        hosts: the hosts.
        wish: what the VM needs.
        current: URI of a host that is asked about.

    Returns:
        The host with the most room left with the VM, or where the least is missing; how much that is; and how
        much it is on `current`, None if the VM cannot go there. None if no usable host could ever take it.
    """
    best, most = None, 0.0
    there = None
    need = wish.amounts
    for host in hosts:
        if not host.usable:
            continue
        limit = host.limit
        room = room_left(host.used, need, limit)
        if best is not None and room <= most and host.uri != current:
            continue
        if room_left(NOTHING, need, limit) < 0 or not _allows(host, wish):
            continue
        if host.uri == current:
            there = room
        if best is None or room > most:
            best, most = host, room
    return None if best is None else (best, most, there)


def explain(hosts: Iterable[HostView], wish: Wish) -> str | None:
    """Say why no host could ever take a VM, even if it were empty and usable.

    Args:
        hosts: all that it may go to.
        wish: what the VM needs.

    Returns:
        A sentence that names the nearest host (the fewest criteria fail there, and by the least) and each
        criterion that fails there; None if some host could take it.
    """
    nearest: tuple[int, float] | None = None
    sentence = "there is no host that it could go to"
    for host in hosts:
        failing = list(_failing(host, wish))
        if not failing:
            return None
        distance = (len(failing), sum(short for _, short in failing))
        if nearest is None or distance < nearest:
            nearest = distance
            reasons = ", and ".join(reason for reason, _ in failing)
            sentence = f"no host could ever take it; on the nearest, {host.uri}, {reasons}"
    return sentence


def out_of_use(hosts: Sequence[HostView], wish: Wish) -> list[HostView]:
    """Find the hosts that a VM would go to if they were in use.

    Args:
        hosts: all that it may go to.
        wish: what the VM needs.

    Returns:
        They, all of which are not usable now; nothing if a usable one could take the VM at some time.
    """
    need = wish.amounts
    able = [host for host in hosts if room_left(NOTHING, need, host.limit) >= 0 and _allows(host, wish)]
    return [] if any(host.usable for host in able) else able


def _allows(host: HostView, wish: Wish) -> bool:
    if wish.arch and host.arch is not None and host.arch not in wish.arch:
        return False
    if wish.labels:
        return all(host.labels.get(label) in allowed for label, allowed in wish.labels.items())
    return True


def _failing(host: HostView, wish: Wish) -> Iterator[tuple[str, float]]:
    """Tell each criterion that a host can never meet, and by which part of what is wanted it falls short."""
    for label, allowed in wish.labels.items():
        value = host.labels.get(label)
        if value not in allowed:
            there = (
                f"it has no label {label}, which is to be" if value is None else f"{label} is {value!r}, not"
            )
            yield f"{there} {_one_of(allowed)}", 1.0
    if wish.arch and host.arch is not None and host.arch not in wish.arch:
        yield f"arch is {host.arch!r}, not {_one_of(wish.arch)}", 1.0
    if host.limit.slots == 0:
        yield "slots is 0", 1.0
    for name in ("memory", "vcpus", "disk"):
        most, needed = getattr(host.limit, name), getattr(wish, name)
        if most is not None and needed > most:
            there, wanted = in_words(name, most), in_words(name, needed)
            yield f"{name} is at most {there}, not {wanted}", (needed - most) / needed


def in_words(resource: str, amount: float) -> str:
    """Write how much of a resource there is.

    Args:
        resource: a field of `Amounts`.
        amount: how much, as there.
    """
    return amount_text(int(amount)) if resource in ("memory", "disk") else f"{amount:g}"


def _one_of(values: Collection[str]) -> str:
    return " or ".join(repr(value) for value in sorted(values)) or "anything"
