"""`latentvirt image build`: a base image made of a stock image."""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from latentvirt.aliases import check_alias
from latentvirt.amounts import mebibytes
from latentvirt.building import Order, check_order, name_of_file
from latentvirt.building import build as build_image
from latentvirt.cli.asking import checked_uri, usual_host
from latentvirt.cli.running import run_to_end
from latentvirt.cli.saying import say
from latentvirt.cli.values import read_by
from latentvirt.config import BYTES_PER_MIB, Connection
from latentvirt.host import Driver, Host
from latentvirt.images.catalogue import load_catalogue
from latentvirt.images.cloudconfig import read_cloud_config, read_meta_data
from latentvirt.images.store import STOCK, Entry, ImageStore
from latentvirt.roots import check_root_is_there
from latentvirt.showing import visible
from latentvirt.sizes import Size

MINUTE_S = 60
INTERRUPTED = "Broken off, by Ctrl-C or by kill -9, it leaves nothing that its next run does not remove."
EXIT_STATUS = "Exit status: 0 built, 1 failed or refused (nothing is published), 2 wrong command line."
WITH_FILE = click.Path(exists=True, dir_okay=False)


class Telling:
    """Tell on standard error how a build goes: a live line on a terminal, a line for each step in a pipe."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._began = time.monotonic()
        self._live: Progress | None = None
        self._step = self._line = ""
        if self._console.is_terminal:
            self._live = Progress(
                SpinnerColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.description}", markup=False),
                console=self._console,
                transient=True,
            )
            self._task = self._live.add_task("")

    def __enter__(self) -> Telling:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, text: str) -> None:
        """Tell what is begun."""
        if self._live is None:
            self.tell(f"{time.monotonic() - self._began:5.0f} s  {text}")
        self._step = text
        self._paint()

    def console(self, lines: list[str]) -> None:
        """Show the last line that the guest wrote."""
        written = [line for line in lines if line.strip()]
        if written:
            self._line = written[-1].strip()
            self._paint()

    def tell(self, text: str) -> None:
        """Tell what is no step."""
        (self._live.console if self._live is not None else self._console).print(visible(text))

    def _paint(self) -> None:
        if self._live is not None:
            text = f"{self._step}  {self._line}" if self._line else self._step
            room = max(20, self._console.width - 14)
            self._live.update(self._task, description=visible(text)[:room])


def _read(path: str | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()


def _named(image: str, store: ImageStore) -> str:
    """Know an image by any of its names; a path stays one."""
    if "/" in image:
        return image
    stock = [entry.name for entry in store.entries() if entry.kind == STOCK]
    return load_catalogue().name_of(image, also=stock)


def _said(entry: Entry) -> str:
    facts = entry.source["facts"]
    worker = f"buildbot-worker {facts.get('buildbot-worker')} ({facts.get('worker')})"
    size = -(-entry.size // BYTES_PER_MIB)
    return f"built {entry.name} for {entry.arch}: {size} MiB, {worker}, Python {facts.get('python')}"


@click.command(short_help="Make a base image of a stock image.", epilog=f"{INTERRUPTED} {EXIT_STATUS}")
@click.argument("image", metavar="NAME|PATH")
@click.option("--name", help="Of the image that is built; without it, that of the stock image.")
@click.option("--user-data", metavar="FILE", type=WITH_FILE, help="Your #cloud-config, merged into ours.")
@click.option("--meta-data", metavar="FILE", type=WITH_FILE, help="Your meta-data, likewise.")
@click.option(
    "-c",
    "--connect",
    "uri",
    metavar="URI",
    callback=read_by(checked_uri),
    help="A libvirt of this machine; else as for virsh.",
)
@click.option(
    "--memory",
    default="2 GiB",
    show_default=True,
    callback=read_by(lambda value: mebibytes(value, "memory")),
    help="Of the VM: MiB, or with a unit.",
)
@click.option("--vcpus", type=click.IntRange(min=1), default=2, show_default=True, help="Of the VM.")
@click.option(
    "--disk",
    metavar="SIZE",
    callback=read_by(lambda value: mebibytes(value, "disk")),
    help="Size of the image's disk; without it, as large as it is.",
)
@click.option("--network", default="user", show_default=True, help="A libvirt network, or 'user'.")
@click.option(
    "--timeout",
    "minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=30,
    show_default=True,
    metavar="MINUTES",
    help="How long the guest may take.",
)
@click.option("--keep-on-failure", is_flag=True, help="Leave a VM that failed running, to look at it.")
@click.pass_obj
def build(
    driver: Driver | None,
    image: str,
    name: str | None,
    user_data: str | None,
    meta_data: str | None,
    uri: str | None,
    memory: int,
    vcpus: int,
    disk: int | None,
    network: str,
    minutes: float,
    keep_on_failure: bool,
) -> None:
    """Make a base image of a stock image: NAME in the image store, or the file at PATH.

    The stock image is booted once, over a disk of its own. cloud-init installs buildbot-worker and the guest
    helper there, and does what your user-data say; then the system is made anonymous, shuts down, and is
    published in the image store, as a built image. The stock image stays as it was.
    """
    connection = usual_host() if uri is None else Connection(uri)
    check_alias(connection.uri)
    check_root_is_there(connection.uri)
    given_user_data, given_meta_data = _read(user_data), _read(meta_data)
    store = ImageStore()
    image = _named(image, store)
    order = Order(
        image=image,
        name=name or (name_of_file(image) if "/" in image else image),
        size=Size(memory=memory, vcpus=vcpus, disk=disk),
        network=network,
        timeout_s=minutes * MINUTE_S,
        keep_on_failure=keep_on_failure,
        user_data={} if given_user_data is None else read_cloud_config(given_user_data, str(user_data)),
        meta_data={} if given_meta_data is None else read_meta_data(given_meta_data, str(meta_data)),
    )
    check_order(order, connection, store)
    with Telling() as telling:

        def waits() -> None:
            telling.step(f"waiting for another process that builds {order.name}")

        async def work() -> Entry:
            from twisted.internet import reactor

            host = Host(connection, reactor, driver=driver)
            try:
                return await build_image(order, host, store, telling)
            finally:
                await host.close()

        with store.lock(f"build {order.name}", waits):
            entry = run_to_end(work)
    say(_said(entry))
    say(str(store.path_of(entry)))
