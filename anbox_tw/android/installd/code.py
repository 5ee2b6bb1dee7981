"""Commands on code: compiled forms, directories beside applications, links.

Source: ``cmds/installd/commands.cpp`` and ``utils.cpp`` of Android 7.0.
"""

from __future__ import annotations

import contextlib
import re
import stat

from anbox_tw.android.installd._commands import BadArgument
from anbox_tw.android.installd.tree import OutsideRoot, Place, Tree

__all__ = ["CodeOperations"]

AID_SYSTEM = 1000
AID_INSTALL = 1012

_ISA = re.compile(r"[a-z0-9_]{1,16}\Z")


class CodeOperations:
    """What needs no package and no user.

    Attributes:
        tree: with the roots ``/data`` and ``/mnt/expand``.
    """

    def __init__(self, tree: Tree) -> None:
        """Nothing is touched."""
        self.tree = tree
        self._data = tree.root("/data")

    def _isa(self, isa: str) -> str:
        if not _ISA.match(isa):
            raise BadArgument(f"invalid instruction set {isa!r}")
        return isa

    def code(self, path: str, max_subdirs: int = 1) -> Place:
        """A path below one of the directories for applications, as ``validate_apk_path`` wants it.

        Raises:
            OutsideRoot: it is not.
        """
        for prefix in (
            "/data/app/",
            "/data/app-private/",
            "/data/app-ephemeral/",
            "/mnt/asec/",
            "/mnt/expand/",
        ):
            if path.startswith(prefix):
                rest = path[len(prefix) :]
                limit = max(max_subdirs, 2) if prefix == "/mnt/expand/" else max_subdirs
                head, slash, inner = rest.partition("/")
                if prefix == "/mnt/expand/" and not re.match("app/+[^/]", inner):
                    # the original would take a whole volume, or all its applications, for one
                    raise OutsideRoot(f"{path!r} is no application of a volume")
                if head.startswith(".") or inner.startswith(".") or not head:
                    raise OutsideRoot(f"invalid apk path {path!r} (trickery)")
                if slash and limit == 1 and "/" in inner:
                    raise OutsideRoot(f"invalid apk path {path!r} (subdir?)")
                return self.tree.locate(path)
        raise OutsideRoot(f"invalid apk path {path!r} (bad prefix)")

    def _system(self, path: str) -> None:
        """As ``validate_system_app_path``."""
        prefixes = ("/system/app/", "/system/priv-app/", "/vendor/app/", "/oem/app/")
        for prefix in prefixes:
            if path.startswith(prefix):
                head, _, inner = path[len(prefix) :].partition("/")
                if head.startswith(".") or inner.startswith(".") or "/" in inner:
                    raise OutsideRoot(f"invalid apk path {path!r} (trickery)")
                return
        raise OutsideRoot(f"invalid apk path {path!r} (bad prefix)")

    def cache_file(self, path: str, isa: str) -> Place:
        """Where the compiled form of an application lies (``create_cache_path``)."""
        if not path.startswith("/") or ".." in path:
            raise OutsideRoot(f"invalid path {path!r}")
        name = path[1:].replace("/", "@") + "@classes.dex"
        return self._data / "dalvik-cache" / self._isa(isa) / name

    def rmdex(self, path: str, isa: str) -> int:
        """Delete the compiled form of an application."""
        try:
            self.code(path)
        except OutsideRoot:
            self._system(path)
        return -1 if self.tree.unlink(self.cache_file(path, isa)) else 0

    def markbootcomplete(self, isa: str) -> int:
        """Delete the mark that booting is under way."""
        return -1 if self.tree.unlink(self._data / "dalvik-cache" / self._isa(isa) / ".booting") else 0

    def createoatdir(self, oat_dir: str, isa: str) -> int:
        """Make the directories for compiled code beside an application."""
        place = self.code(oat_dir)
        self._isa(isa)
        for directory in (place, place / isa):
            if self.tree.prepare_dir(directory, 0o771, AID_SYSTEM, AID_INSTALL, strict=False):
                return -1
        return 0

    def rmpackagedir(self, package_dir: str) -> int:
        """Delete an application's code."""
        return self.tree.delete(self.code(package_dir), itself=True)

    def linkfile(self, relative_path: str, from_base: str, to_base: str) -> int:
        """Make a hard link from one application directory to another."""
        source = self.code(f"{from_base}/{relative_path}", 3)
        target = self.code(f"{to_base}/{relative_path}", 3)
        return -1 if self.tree.link(source, target) else 0

    def _odex(self, apk_path: str, isa: str, oat_dir: str) -> Place:
        self.code(apk_path)
        name = apk_path.rpartition("/")[2]
        stem, dot, _ = name.rpartition(".")
        if not dot or not stem:
            raise BadArgument(f"apk path {apk_path!r} has no extension")
        return self.code(oat_dir) / self._isa(isa) / f"{stem}.odex"

    def move_ab(self, apk_path: str, isa: str, oat_dir: str) -> int:
        """Put the compiled code that an update prepared in the place of the old."""
        old = self._odex(apk_path, isa, oat_dir)
        new = Place(old.root, (*old.parts[:-1], old.name + ".b"))
        try:
            found = self.tree.lstat(new)
        except OSError:
            return -1
        if not stat.S_ISREG(found.st_mode):
            self.tree.unlink(new)
            return -1
        with contextlib.suppress(OSError):
            if not stat.S_ISREG(self.tree.lstat(old).st_mode):
                self.tree.unlink(new)
                return -1
        if self.tree.rename(new, old):
            self.tree.unlink(new)
            return -1
        return 0

    def delete_odex(self, apk_path: str, isa: str, oat_dir: str) -> int:
        """Delete compiled code (7.1); ``!`` for the directory means the cache."""
        place = self.cache_file(apk_path, isa) if oat_dir == "!" else self._odex(apk_path, isa, oat_dir)
        return -1 if self.tree.unlink(place) else 0

    def idmap_file(self, overlay_apk: str) -> Place:
        """Where the resource map of an overlay is written (``flatten_path``)."""
        if not overlay_apk.startswith("/"):
            raise OutsideRoot(f"{overlay_apk!r} is not absolute")
        return self._data / "resource-cache" / (overlay_apk[1:].replace("/", "@") + "@idmap")
