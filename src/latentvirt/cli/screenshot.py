"""`latentvirt vm screenshot`: a picture of what a VM shows."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import click

from latentvirt import domainxml
from latentvirt.cli.asking import about_hosts, ask, finish
from latentvirt.cli.finding import ENDS_WITH, find, only
from latentvirt.cli.values import line_of_text, read_by
from latentvirt.config import Connection
from latentvirt.errors import ConfigError, HostError, NotFound
from latentvirt.host import Driver, Host
from latentvirt.picture import png

STANDARD_OUTPUT = "-"


@click.command(short_help="Save a picture of a VM's screen.", epilog=ENDS_WITH)
@click.argument("name")
@click.argument(
    "file",
    metavar="FILE.png",
    type=click.Path(dir_okay=False, allow_dash=True),
    callback=read_by(line_of_text),
)
@about_hosts
@click.pass_obj
def screenshot(driver: Driver | None, connections: Sequence[Connection], name: str, file: str) -> None:
    """Save a picture of the screen of the VM of the domain, or the worker, NAME, as a PNG file.

    FILE may be - for standard output.

    The VM needs a video device. Domains that latentvirt generates have none: their guests write to the serial
    console, which latentvirt vm console shows.
    """

    async def look() -> bytes:
        connection, seen = await find(connections, name, driver)
        domain = seen.use.name

        async def take(host: Host) -> bytes:
            if not domainxml.has_screen(await host.description(seen.use.uuid)):
                raise NotFound(
                    f"the VM {domain!r} has no video device, and so no screen",
                    host=host.uri,
                    domain=domain,
                    remedy="give its XML a <video>, or look at its serial console: latentvirt vm console -c "
                    f"'{host.uri}' '{domain}'",
                )
            try:
                return png(*await host.screenshot(seen.use.uuid))
            except ValueError as error:
                raise HostError(f"the host sent {error}", host=host.uri, domain=domain) from error

        return only(await ask([connection], take, driver))

    picture = finish(connections, look)
    if file == STANDARD_OUTPUT:
        click.echo(picture, nl=False)
        return
    try:
        _write(file, picture)
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be written: {error.strerror}", remedy="name another file"
        ) from error


def _write(file: str, content: bytes) -> None:
    """Write a file whole or not at all; into what is there and is none, such as a pipe, as it comes."""
    mode = os.stat(file).st_mode if os.path.exists(file) else None
    if mode is not None and not stat.S_ISREG(mode):
        Path(file).write_bytes(content)
        return
    path = os.path.realpath(file)  # a link stays one
    beside = os.path.join(os.path.dirname(path), f".{uuid4().hex}")
    try:
        Path(beside).write_bytes(content)
        if mode is not None:
            os.chmod(beside, stat.S_IMODE(mode))
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
