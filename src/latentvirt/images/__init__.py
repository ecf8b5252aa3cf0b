"""Base images that are copied to the hosts that need them: once, under the digest of what is in them."""

from latentvirt.flights import Say, say_nothing
from latentvirt.images.library import Brought, Library

__all__ = ["Brought", "Library", "Say", "say_nothing"]
