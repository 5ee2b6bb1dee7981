"""The store of images: fetched, checked, kept in versions, swapped atomically."""

from __future__ import annotations

from anbox_tw.container.imagestore.fetch import Fetcher, FetchOptions, Progress
from anbox_tw.container.imagestore.install import Installer
from anbox_tw.container.imagestore.store import ImageStore, Version, default_store, resolve_image

__all__ = [
    "FetchOptions",
    "Fetcher",
    "ImageStore",
    "Installer",
    "Progress",
    "Version",
    "default_store",
    "resolve_image",
]
