"""What the commands of Android 7.0 do to the data tree.

Source: ``cmds/installd/commands.cpp`` and ``utils.cpp`` of Android 7.0. Each method returns the number (and text) of
its reply and may block: the service calls it in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator

from twisted.logger import Logger

from anbox_tw.android.aid import APP_START, PER_USER_RANGE, SHARED_APP_GID_START
from anbox_tw.android.installd._commands import BadArgument
from anbox_tw.android.installd.code import CodeOperations
from anbox_tw.android.installd.tree import OutsideRoot, Place, Tree

__all__ = ["Operations"]

STORAGE_DE = 1
STORAGE_CE = 2
CLEAR_CACHE_ONLY = 256
CLEAR_CODE_CACHE_ONLY = 512

MAX_PACKAGE_NAME = 128
"""``PKG_NAME_MAX``."""

MAX_USER_ID = 21473
"""So that every uid of the user fits in 31 bits."""

RESTRICTED_HOME_SDK = 24
"""From this target on an application's home is its own alone (``MIN_RESTRICTED_HOME_SDK_VERSION``)."""

XATTR_DEFAULT = "user.default"
"""``kXattrDefault``."""

MAX_CACHE_FILES = 200_000
"""Files that ``freecache`` looks at."""

AID_SYSTEM = 1000
AID_EVERYBODY = 9997

_PACKAGE = re.compile(r"[A-Za-z0-9_.]+(-[A-Za-z0-9_.-]*)?\Z")

LAYOUT = (
    ("app", 0o771, AID_SYSTEM),
    ("app-private", 0o771, AID_SYSTEM),
    ("app-ephemeral", 0o771, AID_SYSTEM),
    ("app-asec", 0o700, 0),
    ("app-lib", 0o771, AID_SYSTEM),
    ("dalvik-cache", 0o771, 0),
    ("data", 0o771, AID_SYSTEM),
    ("media", 0o770, 1023),
    ("misc", 0o1771, AID_SYSTEM),
    ("misc/user", 0o771, 0),
    ("misc/profiles", 0o771, AID_SYSTEM),
    ("misc/profiles/cur", 0o771, AID_SYSTEM),
    ("misc/profiles/ref", 0o771, AID_SYSTEM),
    ("misc/profman", 0o770, AID_SYSTEM),
    ("resource-cache", 0o771, AID_SYSTEM),
    ("user", 0o711, AID_SYSTEM),
    ("user_de", 0o711, AID_SYSTEM),
    ("user_de/0", 0o771, AID_SYSTEM),
    ("media/0", 0o770, 1023),
)
"""Directories of ``/data`` as ``init.rc`` and ``vold`` make them: path, mode, owner and group."""


class Operations(CodeOperations):
    """The commands, on one tree.

    Attributes:
        tree: with the roots ``/data`` and ``/mnt/expand``, and any others that code may lie in.
        jit_profiles: as with the property ``dalvik.vm.usejitprofiles``.
    """

    log = Logger()

    def __init__(self, tree: Tree, *, jit_profiles: bool = False) -> None:
        """Nothing is touched before ``prepare``."""
        super().__init__(tree)
        self.jit_profiles = jit_profiles

    def prepare(self) -> int:
        """Make the directories that the commands need, where they are missing; 0, or -1 when some cannot be made."""
        result = 0
        for name, mode, owner in LAYOUT:
            place = self._data / name
            if not self.tree.exists(place):
                result |= self.tree.prepare_dir(place, mode, owner, owner, strict=False)
        result |= self._config_dirs(0)
        version = self._data / ".layout_version"
        if not self.tree.exists(version) and self.tree.prepare_file(version, 0o600, 0, 0) == 0:
            with self.tree.directory(self._data) as descriptor:
                file = os.open(version.name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
                with open(file, "w", encoding="ascii") as out:
                    out.write("3")
        return result

    # -- places -----------------------------------------------------------------------------------------

    def _volume(self, uuid: str | None) -> Place:
        return self._data if uuid is None else self.tree.root("/mnt/expand") / self._file_name(uuid)

    def _file_name(self, name: str) -> str:
        if name in ("", ".", "..") or "/" in name:
            raise BadArgument(f"invalid file name {name!r}")
        return name

    def package(self, name: str) -> str:
        """A package's name, checked as ``is_valid_package_name`` does.

        Raises:
            BadArgument: it is none (where the original aborts).
        """
        self._file_name(name)
        if (
            len(name) > MAX_PACKAGE_NAME
            or not _PACKAGE.match(name)
            or name[0] == "."
            or name[-1] == "."
            or ".." in name
        ):
            raise BadArgument(f"invalid package name {name!r}")
        return name

    def _user(self, userid: int) -> str:
        if not 0 <= userid <= MAX_USER_ID:
            raise BadArgument(f"invalid user {userid}")
        return str(userid)

    def _uid(self, userid: int, appid: int) -> int:
        self._user(userid)
        if not 0 <= appid < PER_USER_RANGE:
            raise BadArgument(f"invalid application id {appid}")
        return userid * PER_USER_RANGE + appid

    def user_ce(self, uuid: str | None, userid: int) -> Place:
        """Where a user's credential-encrypted data lies."""
        user = self._user(userid)
        if uuid is None and userid == 0:
            return self._data / "data"
        return self._volume(uuid) / "user" / user

    def user_de(self, uuid: str | None, userid: int) -> Place:
        """Where a user's device-encrypted data lies."""
        return self._volume(uuid) / "user_de" / self._user(userid)

    def _media(self, uuid: str | None, userid: int) -> Place:
        return self._volume(uuid) / "media" / self._user(userid)

    def ce(self, uuid: str | None, userid: int, pkgname: str, inode: int = 0) -> Place:
        """An application's credential-encrypted home; by its inode, when that is known and found."""
        users = self.user_ce(uuid, userid)
        home = users / self.package(pkgname)
        if inode:
            with contextlib.suppress(OSError):
                with self.tree.directory(users) as descriptor, os.scandir(descriptor) as entries:
                    for entry in entries:
                        if entry.inode() == inode:
                            return users / entry.name
            self.log.warn("failed to resolve inode {inode}; using {home}", inode=inode, home=str(home))
        return home

    def de(self, uuid: str | None, userid: int, pkgname: str) -> Place:
        """An application's device-encrypted home."""
        return self.user_de(uuid, userid) / self.package(pkgname)

    def _current_profile(self, userid: int, pkgname: str) -> Place:
        return self._data / "misc/profiles/cur" / self._user(userid) / self.package(pkgname)

    def _reference_profile(self, pkgname: str) -> Place:
        return self._data / "misc/profiles/ref" / self.package(pkgname)

    def known_users(self, uuid: str | None) -> list[int]:
        """User 0, and every user with a directory."""
        users = [0]
        with contextlib.suppress(OSError):
            with (
                self.tree.directory(self._volume(uuid) / "user") as descriptor,
                os.scandir(descriptor) as entries,
            ):
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False) and entry.name.isascii() and entry.name.isdigit():
                        number = int(entry.name)
                        if 0 < number <= MAX_USER_ID:
                            users.append(number)
        return users

    def _config_dirs(self, userid: int) -> int:
        place = self._data / "misc/user" / self._user(userid)
        owner, group = self._uid(userid, AID_SYSTEM), self._uid(userid, AID_EVERYBODY)
        return self.tree.prepare_dir(place, 0o750, owner, group, strict=False)

    # -- application data -------------------------------------------------------------------------------

    def ping(self) -> int:
        """Nothing, with success."""
        return 0

    def create_app_data(
        self,
        uuid: str | None,
        pkgname: str,
        userid: int,
        flags: int,
        appid: int,
        seinfo: str,
        target_sdk: int,
    ) -> int:
        """Make an application's homes; a failure of the device-encrypted one is not told."""
        uid = self._uid(userid, appid)
        mode = 0o700 if target_sdk >= RESTRICTED_HOME_SDK else 0o751
        ce, de = self.ce(uuid, userid, pkgname), self.de(uuid, userid, pkgname)
        if flags & STORAGE_CE and self.tree.prepare_dir(ce, mode, uid, uid, strict=True):
            return -1
        if flags & STORAGE_DE:
            if self.tree.prepare_dir(de, mode, uid, uid, strict=True):
                return 0
            if self.jit_profiles:
                return self._create_profiles(pkgname, userid, uid, appid)
        return 0

    def _create_profiles(self, pkgname: str, userid: int, uid: int, appid: int) -> int:
        current = self._current_profile(userid, pkgname)
        if not self.tree.exists(current.parent):
            self.tree.prepare_dir(current.parent, 0o771, AID_SYSTEM, AID_SYSTEM, strict=False)
        shared = SHARED_APP_GID_START + appid - APP_START
        if self.tree.prepare_dir(current, 0o700, uid, uid, strict=True):
            return -1
        if self.tree.prepare_file(current / "primary.prof", 0o600, uid, uid):
            return -1
        return self.tree.prepare_dir(self._reference_profile(pkgname), 0o700, shared, shared, strict=True)

    def restorecon_app_data(
        self, uuid: str | None, pkgname: str, userid: int, flags: int, appid: int, seinfo: str
    ) -> int:
        """There are no labels here; a home that is not there is still an error."""
        self._uid(userid, appid)
        home = self.ce(uuid, userid, pkgname)
        return -1 if flags & STORAGE_CE and not self.tree.exists(home) else 0

    def migrate_app_data(self, uuid: str | None, pkgname: str, userid: int, flags: int) -> int:
        """Move the data to where the application now wants it, unless it is there already."""
        ce, de = self.ce(uuid, userid, pkgname), self.de(uuid, userid, pkgname)
        marked = {place: self._is_default(place) for place in (ce, de)}
        if not any(marked.values()):
            try:
                with self.tree.directory(ce) as descriptor:
                    os.setxattr(descriptor, XATTR_DEFAULT, b"")
            except OSError as error:
                self.log.error(
                    "failed to mark default storage {ce}: {reason}", ce=str(ce), reason=error.strerror
                )
                return -1
            marked[ce] = True
        target, source = (de, ce) if flags & STORAGE_DE else (ce, de)
        if not marked[target] and (self.tree.delete(target, itself=True) or self.tree.rename(source, target)):
            return -1
        return 0

    def _is_default(self, place: Place) -> bool:
        with contextlib.suppress(OSError):
            with self.tree.directory(place) as descriptor:
                os.getxattr(descriptor, XATTR_DEFAULT)
                return True
        return False

    def clear_app_data(
        self, uuid: str | None, pkgname: str, userid: int, flags: int, ce_data_inode: int
    ) -> int:
        """Delete what is in an application's homes, or only in their caches."""
        ce, de = self.ce(uuid, userid, pkgname, ce_data_inode), self.de(uuid, userid, pkgname)
        only_cache = bool(flags & (CLEAR_CACHE_ONLY | CLEAR_CODE_CACHE_ONLY))
        if only_cache:
            child = "cache" if flags & CLEAR_CACHE_ONLY else "code_cache"
            ce, de = ce / child, de / child
        result = 0
        if flags & STORAGE_CE and self.tree.exists(ce):
            result |= self.tree.delete(ce)
        if flags & STORAGE_DE:
            if self.tree.exists(de):
                self.tree.delete(de)
            if not only_cache and not self._clear_profile(self._current_profile(userid, pkgname)):
                result |= -1
        return result

    def destroy_app_data(
        self, uuid: str | None, pkgname: str, userid: int, flags: int, ce_data_inode: int
    ) -> int:
        """Delete an application's homes; one that is missing is an error."""
        ce, de = self.ce(uuid, userid, pkgname, ce_data_inode), self.de(uuid, userid, pkgname)
        result = 0
        if flags & STORAGE_CE:
            result |= self.tree.delete(ce, itself=True)
        if flags & STORAGE_DE:
            result |= self.tree.delete(de, itself=True)
            self.tree.delete(self._current_profile(userid, pkgname), itself=True, ignore_missing=True)
            self.tree.delete(self._reference_profile(pkgname), itself=True, ignore_missing=True)
        return result

    def move_complete_app(
        self,
        from_uuid: str | None,
        to_uuid: str | None,
        pkgname: str,
        data_app_name: str,
        appid: int,
        seinfo: str,
        target_sdk: int,
    ) -> int:
        """Copy an application and its data of all users to another volume; the framework deletes the old ones."""
        self.package(pkgname)
        users = self.known_users(from_uuid)
        source, target = self._app(from_uuid, data_app_name), self._app(to_uuid, data_app_name)
        both = STORAGE_CE | STORAGE_DE
        failed = bool(self.tree.copy(source, target))
        for user in users:
            if failed:
                break
            if not self.tree.exists(self.ce(from_uuid, user, pkgname)):
                continue
            failed = bool(
                self.create_app_data(to_uuid, pkgname, user, both, appid, seinfo, target_sdk)
                or self.tree.copy(self.de(from_uuid, user, pkgname), self.de(to_uuid, user, pkgname))
                or self.tree.copy(self.ce(from_uuid, user, pkgname), self.ce(to_uuid, user, pkgname))
            )
        if not failed:
            return 0
        self.tree.delete(target, itself=True, ignore_missing=True)
        for user in users:
            self.tree.delete(self.de(to_uuid, user, pkgname), itself=True, ignore_missing=True)
            self.tree.delete(self.ce(to_uuid, user, pkgname), itself=True, ignore_missing=True)
        return -1

    def _app(self, uuid: str | None, name: str) -> Place:
        return self._volume(uuid) / "app" / self.package(name)

    def get_app_size(
        self, uuid: str | None, pkgname: str, userid: int, flags: int, ce_data_inode: int, code_path: str
    ) -> tuple[int, str]:
        """Bytes of code, data, caches, and (always 0) of secure containers."""
        code = data = cache = 0
        with contextlib.suppress(OutsideRoot):
            code += self.tree.size(self.tree.locate(code_path))
        homes = []
        ce, de = self.ce(uuid, userid, pkgname, ce_data_inode), self.de(uuid, userid, pkgname)
        if flags & STORAGE_CE:
            homes.append(ce)
        if flags & STORAGE_DE:
            homes.append(de)
        for home in homes:
            sizes = self._home_size(home)
            code, data, cache = code + sizes[0], data + sizes[1], cache + sizes[2]
        return 0, f"{code} {data} {cache} 0"

    def _home_size(self, home: Place) -> tuple[int, int, int]:
        code = data = cache = 0
        try:
            with self.tree.directory(home) as descriptor:
                # the original's readdir gives "." and ".." too, and adds them before it skips them
                for name in (".", ".."):
                    data += os.stat(name, dir_fd=descriptor).st_blocks * 512
                with os.scandir(descriptor) as entries:
                    names = [entry.name for entry in entries]
                for name in names:
                    with contextlib.suppress(OSError):
                        found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                        own = found.st_blocks * 512
                        if stat.S_ISDIR(found.st_mode):
                            inner = self.tree.size(home / name)
                            data += own
                            if name in ("cache", "code_cache"):
                                cache += inner
                            else:
                                data += inner
                        elif stat.S_ISLNK(found.st_mode) and name == "lib":
                            code += own
                        else:
                            data += own
        except OSError as error:
            self.log.warn("failed to open {home}: {reason}", home=str(home), reason=error.strerror)
        return code, data, cache

    def get_app_data_inode(self, uuid: str | None, pkgname: str, userid: int, flags: int) -> tuple[int, str]:
        """The inode of an application's credential-encrypted home."""
        home = self.ce(uuid, userid, pkgname)
        if flags & STORAGE_CE:
            with contextlib.suppress(OSError):
                return 0, str(self.tree.lstat(home).st_ino)
        return -1, "0"

    def linklib(self, uuid: str | None, pkgname: str, asec_lib_dir: str, userid: int) -> int:
        """Point an application's ``lib`` at a directory."""
        home = self.ce(uuid, userid, pkgname)
        try:
            self.tree.lstat(home)
        except OSError:
            return -1
        link = home / "lib"
        try:
            found = self.tree.lstat(link)
        except OSError as error:
            if error.errno != errno.ENOENT:
                return -1
        else:
            if stat.S_ISDIR(found.st_mode):
                if self.tree.delete(link, itself=True) < 0:
                    return -1
            elif stat.S_ISLNK(found.st_mode) and self.tree.unlink(link):
                return -1
        return self.tree.symlink(asec_lib_dir, link)

    # -- users ------------------------------------------------------------------------------------------

    def create_user_data(self, uuid: str | None, userid: int, user_serial: int, flags: int) -> int:
        """Make a user's directories: the configuration, and what ``vold`` makes on a device."""
        result = 0
        if flags & STORAGE_DE and uuid is None:
            result = self._config_dirs(userid)
        wanted: list[tuple[Place, int, int]] = []
        if flags & STORAGE_CE:
            wanted.append((self.user_ce(uuid, userid), 0o771, AID_SYSTEM))
            wanted.append((self._media(uuid, userid), 0o770, 1023))
        if flags & STORAGE_DE:
            wanted.append((self.user_de(uuid, userid), 0o771, AID_SYSTEM))
        for place, mode, owner in wanted:
            for missing in (Place(place.root, place.parts[: len(place.parts) - 1]), place):
                if missing.parts and not self.tree.exists(missing):
                    # vold's part: a failure shows when an application's home is made
                    self.tree.prepare_dir(
                        missing, mode if missing == place else 0o711, owner, owner, strict=False
                    )
        return result

    def destroy_user_data(self, uuid: str | None, userid: int, flags: int) -> int:
        """Delete a user's directories; missing ones are fine."""
        result = 0
        user = self._user(userid)
        if flags & STORAGE_DE:
            result |= self._delete_all(self.user_de(uuid, userid))
            if uuid is None:
                result |= self._delete_all(self._data / "misc/user" / user)
                result |= self._delete_all(self._data / "misc/profiles/cur" / user)
        if flags & STORAGE_CE:
            result |= self._delete_all(self.user_ce(uuid, userid))
            result |= self._delete_all(self._media(uuid, userid))
        return result

    def _delete_all(self, place: Place) -> int:
        return self.tree.delete(place, itself=True, ignore_missing=True)

    # -- caches -----------------------------------------------------------------------------------------

    def freecache(self, uuid: str | None, free_size: int) -> int:
        """Delete cache files, oldest first, until so many bytes are free."""
        volume = self._volume(uuid)
        free = self.tree.free_bytes(volume)
        if free < 0:
            return -1
        if free >= free_size:
            return 0
        files: list[tuple[int, Place]] = []
        for user in self.known_users(uuid):
            for homes in (
                self.user_ce(uuid, user),
                self.user_de(uuid, user),
                self._media(uuid, user) / "Android/data",
            ):
                for home in self._children(homes):
                    self._collect(home / "cache", files, 0)
        files.sort(key=lambda item: item[0])
        for count, (_, place) in enumerate(files):
            self.tree.unlink(place)
            if count % 16 == 15 and self.tree.free_bytes(volume) >= free_size:
                break
        return 0 if self.tree.free_bytes(volume) >= free_size else -1

    def _children(self, place: Place) -> Iterator[Place]:
        with contextlib.suppress(OSError):
            with self.tree.directory(place) as descriptor, os.scandir(descriptor) as entries:
                names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
            yield from (place / name for name in names)

    def _collect(self, place: Place, files: list[tuple[int, Place]], depth: int) -> None:
        with contextlib.suppress(OSError):
            with self.tree.directory(place) as descriptor, os.scandir(descriptor) as entries:
                inner = []
                for entry in entries:
                    if len(files) >= MAX_CACHE_FILES:
                        return
                    if entry.is_dir(follow_symlinks=False):
                        inner.append(entry.name)
                    else:
                        found = os.stat(entry.name, dir_fd=descriptor, follow_symlinks=False)
                        files.append((found.st_mtime_ns, place / entry.name))
            if depth < 32:
                for name in inner:
                    self._collect(place / name, files, depth + 1)

    # -- profiles ---------------------------------------------------------------------------------------

    def _clear_profile(self, directory: Place) -> bool:
        """Empty a profile, unless its application holds a lock on it."""
        try:
            with self.tree.directory(directory) as descriptor:
                file = os.open("primary.prof", os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(file, 0)
        except OSError:
            return False
        finally:
            os.close(file)
        return True

    def clear_app_profiles(self, pkgname: str) -> int:
        """Empty the profiles of an application, of all users."""
        places = [self._reference_profile(pkgname)]
        places += [self._current_profile(user, pkgname) for user in self.known_users(None)]
        return 0 if all([self._clear_profile(place) for place in places]) else -1

    def destroy_app_profiles(self, pkgname: str) -> int:
        """Delete the profiles of an application, of all users."""
        result = 0
        for user in self.known_users(None):
            result |= self._delete_all(self._current_profile(user, pkgname))
        return result | self._delete_all(self._reference_profile(pkgname))

    def profile_files(self, pkgname: str) -> tuple[list[str], str]:
        """Host paths of an application's current profiles that are not empty, and of its reference profile."""
        found = []
        for user in self.known_users(None):
            place = self._current_profile(user, pkgname) / "primary.prof"
            with contextlib.suppress(OSError):
                if self.tree.lstat(place).st_size:
                    found.append(place.path)
        return found, (self._reference_profile(pkgname) / "primary.prof").path
