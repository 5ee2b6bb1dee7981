"""The commands of Android 5.1 and 6.0, where they differ from those of 7.0.

Source: ``cmds/installd/commands.c`` of Android 5.1 and ``commands.cpp`` of 6.0. In 5.1 nothing has a volume.
"""

from __future__ import annotations

import contextlib
import stat
from typing import TYPE_CHECKING

from anbox_tw.android.installd._commands import NULL, BadArgument
from anbox_tw.android.installd.operations import AID_SYSTEM, Operations
from anbox_tw.android.installd.tree import OutsideRoot

if TYPE_CHECKING:
    from anbox_tw.android.installd.tree import Place

__all__ = ["OlderOperations"]

MAX_ID = 0x7FFFFFFF


class OlderOperations(Operations):
    """``install`` and its kin; what 7.0 has too is inherited."""

    def _owner(self, uid: int, gid: int) -> tuple[int, int]:
        if not (AID_SYSTEM <= uid <= MAX_ID and AID_SYSTEM <= gid <= MAX_ID):
            raise BadArgument(f"invalid uid/gid: {uid} {gid}")
        return uid, gid

    def _make_home(self, home: Place, uid: int, gid: int) -> int:
        """A new home; one that is there already is an error."""
        if self.tree.exists(home):
            return -17  # EEXIST
        return self.tree.prepare_dir(home, 0o751, uid, gid, strict=False)

    def install(self, pkgname: str, uid: int, gid: int, seinfo: str, uuid: str | None = None) -> int:
        """Make an application's home of user 0."""
        home = self.ce(uuid, 0, pkgname)
        self._owner(uid, gid)
        return -1 if self._make_home(home, uid, gid) else 0

    def mkuserdata(self, pkgname: str, uid: int, userid: int, seinfo: str, uuid: str | None = None) -> int:
        """Make an application's home of another user."""
        home = self.ce(uuid, userid, pkgname)
        if not 0 <= uid <= MAX_ID:
            raise BadArgument(f"invalid uid: {uid}")
        return self._make_home(home, uid, uid)

    def mkuserconfig(self, userid: int) -> int:
        """Make a user's configuration directory, and where homes of that user go."""
        if userid:
            users = self.user_ce(None, userid)
            if not self.tree.exists(users):
                self.tree.prepare_dir(users, 0o771, AID_SYSTEM, AID_SYSTEM, strict=False)
        return self._config_dirs(userid)

    def remove(self, pkgname: str, userid: int, uuid: str | None = None) -> int:
        """Delete an application's home."""
        return self.tree.delete(self.ce(uuid, userid, pkgname), itself=True)

    def rename(self, pkgname: str, new_pkgname: str) -> int:
        """Rename an application's home of user 0."""
        return self.tree.rename(self.ce(None, 0, pkgname), self.ce(None, 0, new_pkgname))

    def fixuid(self, pkgname: str, uid: int, gid: int, uuid: str | None = None) -> int:
        """Give a home that belongs to root to its application."""
        home = self.ce(uuid, 0, pkgname)
        self._owner(uid, gid)
        try:
            found = self.tree.lstat(home)
        except OSError:
            return -1
        if not stat.S_ISDIR(found.st_mode) or (
            self.tree.keep_owners and (found.st_uid, found.st_gid) != (0, 0)
        ):
            return -1
        return self.tree.prepare_dir(home, 0o751, uid, gid, strict=False)

    def rmcache(self, pkgname: str, userid: int, uuid: str | None = None) -> int:
        """Delete what is in a cache."""
        return self.tree.delete(self.ce(uuid, userid, pkgname) / "cache")

    def rmcodecache(self, pkgname: str, userid: int, uuid: str | None = None) -> int:
        """Delete what is in a code cache; a missing one is fine."""
        return self.tree.delete(self.ce(uuid, userid, pkgname) / "code_cache", ignore_missing=True)

    def rmuserdata(self, pkgname: str, userid: int, uuid: str | None = None) -> int:
        """Delete what is in a home."""
        return self.tree.delete(self.ce(uuid, userid, pkgname))

    def rmuser(self, userid: int, uuid: str | None = None) -> int:
        """Delete all homes of a user, its media and configuration; all have to be there."""
        user = self._user(userid)
        places = [self.user_ce(uuid, userid), self._media(uuid, userid)]
        if uuid is None:
            places.append(self._data / "misc/user" / user)
        return -1 if any([self.tree.delete(place, itself=True) for place in places]) else 0

    def restorecondata(self, pkgname: str, seinfo: str, uid: int, uuid: str | None = None) -> int:
        """There are no labels here."""
        self.package(pkgname)
        return 0

    def movefiles(self) -> int:
        """Nothing has moved between releases here."""
        return 0

    def movedex(self, source: str, destination: str, isa: str) -> int:
        """Rename the compiled form of an application."""
        for path in (source, destination):
            try:
                self.code(path)
            except OutsideRoot:
                self._system(path)
        return -1 if self.tree.rename(self.cache_file(source, isa), self.cache_file(destination, isa)) else 0

    def cpcompleteapp(
        self,
        from_uuid: str | None,
        to_uuid: str | None,
        pkgname: str,
        data_app_name: str,
        appid: int,
        seinfo: str,
    ) -> int:
        """As ``move_complete_app`` of 7.0, which knows the target release."""
        return self.move_complete_app(from_uuid, to_uuid, pkgname, data_app_name, appid, seinfo, 0)

    def getsize(
        self,
        pkgname: str,
        userid: int,
        code_path: str,
        libdir: str,
        fwdlock_apk: str,
        asec_path: str,
        isa: str,
        uuid: str | None = None,
    ) -> tuple[int, str]:
        """Bytes of code, data, caches and secure containers; of one user, or with -1 of all."""
        code = data = cache = asec = 0
        for path in (code_path, fwdlock_apk):
            if path != NULL:
                code += self._disk_size(path)
        if code_path != NULL:
            with contextlib.suppress(OutsideRoot, BadArgument, OSError):
                code += self.tree.lstat(self.cache_file(code_path, isa)).st_blocks * 512
        if libdir != NULL:
            code += self._disk_size(libdir)
        if asec_path != NULL:
            asec = self._disk_size(asec_path)
        for user in self.known_users(uuid) if userid == -1 else [userid]:
            home = self.ce(uuid, user, pkgname)
            if self.tree.exists(home):
                sizes = self._home_size(home)
                code, data, cache = code + sizes[0], data + sizes[1], cache + sizes[2]
        return 0, f"{code} {data} {cache} {asec}"

    def _disk_size(self, path: str) -> int:
        with contextlib.suppress(OutsideRoot, OSError):
            place = self.tree.locate(path)
            found = self.tree.lstat(place)
            return found.st_blocks * 512 + (self.tree.size(place) if stat.S_ISDIR(found.st_mode) else 0)
        return 0
