"""Base images made of stock images: by one boot, in which cloud-init installs what a worker needs."""

from latentvirt.building.boot import Listener
from latentvirt.building.builder import Order, build, check_order, name_of_file
from latentvirt.building.recipe import serving

__all__ = ["Listener", "Order", "build", "check_order", "name_of_file", "serving"]
