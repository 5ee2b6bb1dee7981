"""installd: the daemon that makes, measures and deletes what applications keep, and the framework's client of it."""

from anbox_tw.android.installd._commands import RELEASES
from anbox_tw.android.installd.client import AppSize, InstallerConnection
from anbox_tw.android.installd.operations import Operations
from anbox_tw.android.installd.service import TOOLS, InstalldService
from anbox_tw.android.installd.tree import OutsideRoot, Place, Tree

__all__ = [
    "RELEASES",
    "TOOLS",
    "AppSize",
    "InstalldService",
    "InstallerConnection",
    "Operations",
    "OutsideRoot",
    "Place",
    "Tree",
]
