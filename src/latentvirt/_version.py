"""The version, for the package and for those who ask it at run time."""

__version__ = "0.1.0"
