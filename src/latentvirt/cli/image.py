"""`latentvirt image`: the images on this machine, from which base images come."""

from __future__ import annotations

import click

from latentvirt.cli.grouping import LazyGroup

FURTHER = {
    "gc": "latentvirt.cli.image_gc",
    "list": "latentvirt.cli.image_list",
    "pull": "latentvirt.cli.image_pull",
    "push": "latentvirt.cli.image_push",
    "remove": "latentvirt.cli.image_remove",
    "build": "latentvirt.cli.image_build",
}
"""The commands, under their names in modules of their own."""


@click.group(cls=LazyGroup, further=FURTHER, short_help="Get images, and make them ready for workers.")
def image() -> None:
    """Look after the images on this machine, from which base images come.

    They are in /var/lib/latentvirt/images if you are root, else in ~/.local/share/latentvirt/images; the
    variable LATENTVIRT_IMAGES names another folder. A master uses the images of its own user.
    """
