"""Which commands each release has, how many arguments they take, and what these are.

Source: ``cmds[]`` in ``cmds/installd/installd.cpp`` (``installd.c``) of Android 7.1, 7.0, 6.0 and 5.1. The arguments
are named as in the functions that take them; ``?`` marks one for which ``!`` means none, and the kind decides
how it is read: ``int`` ids, flags and sizes are decimal, and anything else in their place is refused (the
original takes text for 0, and so would give an application's directory to root).
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["NULL", "RELEASES", "Argument", "BadArgument", "parse_arguments"]

NULL = "!"
"""What the framework sends for none."""


class Argument(NamedTuple):
    """One argument: its name, and how it is read."""

    name: str
    kind: str
    nullable: bool


class BadArgument(ValueError):
    """An argument cannot be what its place asks for."""


_INTEGERS = {
    "userid",
    "flags",
    "appid",
    "target_sdk",
    "ce_data_inode",
    "user_serial",
    "uid",
    "gid",
    "dexopt_needed",
    "dexopt_flags",
    "free_size",
    "is_public",
    "vm_safe_mode",
    "debuggable",
    "boot_complete",
    "target_hash",
    "overlay_hash",
}
_MAX_INTEGER = 2**63 - 1


def _table(*lines: str) -> dict[str, tuple[Argument, ...]]:
    table = {}
    for line in lines:
        name, *words = line.split()
        table[name] = tuple(
            Argument(word.rstrip("?"), "int" if word.rstrip("?") in _INTEGERS else "text", word.endswith("?"))
            for word in words
        )
    return table


_7_0 = _table(
    "ping",
    "create_app_data uuid? pkgname userid flags appid seinfo target_sdk",
    "restorecon_app_data uuid? pkgname userid flags appid seinfo",
    "migrate_app_data uuid? pkgname userid flags",
    "clear_app_data uuid? pkgname userid flags ce_data_inode",
    "destroy_app_data uuid? pkgname userid flags ce_data_inode",
    "move_complete_app from_uuid? to_uuid? pkgname data_app_name appid seinfo target_sdk",
    "get_app_size uuid? pkgname userid flags ce_data_inode code_path",
    "get_app_data_inode uuid? pkgname userid flags",
    "create_user_data uuid? userid user_serial flags",
    "destroy_user_data uuid? userid flags",
    "dexopt apk_path uid pkgname isa dexopt_needed oat_dir dexopt_flags compiler_filter uuid? shared_libraries?",
    "markbootcomplete isa",
    "rmdex path isa",
    "freecache uuid? free_size",
    "linklib uuid? pkgname asec_lib_dir userid",
    "idmap target_apk overlay_apk uid",
    "createoatdir oat_dir isa",
    "rmpackagedir package_dir",
    "clear_app_profiles pkgname",
    "destroy_app_profiles pkgname",
    "linkfile relative_path from_base to_base",
    "move_ab apk_path isa oat_dir",
    "merge_profiles uid pkgname",
    "dump_profiles uid pkgname code_paths",
)

_7_1 = {**_7_0, **_table("delete_odex apk_path isa oat_dir")}

_6_0 = _table(
    "ping",
    "install uuid? pkgname uid gid seinfo",
    "dexopt apk_path uid is_public pkgname isa dexopt_needed vm_safe_mode debuggable oat_dir boot_complete",
    "markbootcomplete isa",
    "movedex source destination isa",
    "rmdex path isa",
    "remove uuid? pkgname userid",
    "rename pkgname new_pkgname",
    "fixuid uuid? pkgname uid gid",
    "freecache uuid? free_size",
    "rmcache uuid? pkgname userid",
    "rmcodecache uuid? pkgname userid",
    "getsize uuid? pkgname userid code_path libdir fwdlock_apk asec_path isa",
    "rmuserdata uuid? pkgname userid",
    "cpcompleteapp from_uuid? to_uuid? pkgname data_app_name appid seinfo",
    "movefiles",
    "linklib uuid? pkgname asec_lib_dir userid",
    "mkuserdata uuid? pkgname uid userid seinfo",
    "mkuserconfig userid",
    "rmuser uuid? userid",
    "idmap target_apk overlay_apk cache_path uid target_hash overlay_hash",
    "aapt source_apk internal_path out_restable uid pkgid min_sdk app_res_path",
    "aapt_with_common source_apk internal_path out_restable uid pkgid min_sdk app_res_path common_res_path",
    "restorecondata uuid? pkgname seinfo uid",
    "createoatdir oat_dir isa",
    "rmpackagedir package_dir",
    "linkfile relative_path from_base to_base",
)

_5_1 = _table(
    "ping",
    "install pkgname uid gid seinfo",
    "dexopt apk_path uid is_public pkgname isa vm_safe_mode",
    "markbootcomplete isa",
    "movedex source destination isa",
    "rmdex path isa",
    "remove pkgname userid",
    "rename pkgname new_pkgname",
    "fixuid pkgname uid gid",
    "freecache free_size",
    "rmcache pkgname userid",
    "rmcodecache pkgname userid",
    "getsize pkgname userid code_path libdir fwdlock_apk asec_path isa",
    "rmuserdata pkgname userid",
    "movefiles",
    "linklib pkgname asec_lib_dir userid",
    "mkuserdata pkgname uid userid seinfo",
    "mkuserconfig userid",
    "rmuser userid",
    "restorecondata pkgname seinfo uid",
    "patchoat apk_path uid is_public pkgname isa",
    "idmap target_apk overlay_apk cache_path uid target_hash overlay_hash",
    "aapt source_apk internal_path out_restable uid pkgid common_res_path",
    "aapt_with_common source_apk internal_path out_restable uid pkgid app_res_path common_res_path",
)

RELEASES: dict[str, dict[str, tuple[Argument, ...]]] = {"5.1": _5_1, "6.0": _6_0, "7.0": _7_0, "7.1": _7_1}
"""Release to command to arguments."""


def parse_arguments(spec: tuple[Argument, ...], words: list[str]) -> dict[str, str | int | None]:
    """Read the words of a request by its command's arguments.

    Raises:
        BadArgument: the count is wrong, or a number is none.
    """
    if len(words) != len(spec):
        raise BadArgument(f"requires {len(spec)} arguments ({len(words)} given)")
    values: dict[str, str | int | None] = {}
    for argument, word in zip(spec, words, strict=True):
        if argument.kind == "int":
            digits = word.removeprefix("-")
            if not (digits.isascii() and digits.isdigit() and len(digits) < 20) or int(digits) > _MAX_INTEGER:
                raise BadArgument(f"{argument.name} is no number: {word!r}")
            values[argument.name] = int(word)
        else:
            values[argument.name] = None if argument.nullable and word == NULL else word
    return values
