"""The host side of Android containers, as Twisted services and as a library to embed."""

from anbox_tw._version import __version__

__all__ = ["__version__"]
