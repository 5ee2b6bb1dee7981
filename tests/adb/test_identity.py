"""``adb root`` and ``adb unroot`` on a real kernel: shells and file services act as Android's shell user."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import threading
from pathlib import Path

from twisted.internet.threads import deferToThread
from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.adb import tap
from anbox_tw.adb.daemon import adbd, identity
from anbox_tw.adb.daemon.identity import SHELL, Identity, can_change_identity
from tests.adb.test_real_daemon import RealTestCase
from tests.support import need_root


class ThreadTests(SynchronousTestCase):
    def test_one_thread_and_no_other(self) -> None:
        need_root()
        seen: list[object] = []

        def work() -> None:
            SHELL.become_in_this_thread()
            status = Path("/proc/thread-self/status").read_text().splitlines()
            words = {line.split(":")[0]: line.split()[1:] for line in status}
            seen.append((words["Uid"], words["Gid"], words["Groups"], words["CapEff"]))
            try:
                os.open("/etc/shadow", os.O_RDONLY)
            except PermissionError as error:
                seen.append(error.errno)

        groups = os.getgroups()
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        expected = ["2000"] * 4, ["2000"] * 4, [str(group) for group in SHELL.groups], ["0000000000000000"]
        self.assertEqual(seen, [expected, 13])
        self.assertEqual((os.getresuid(), os.getresgid(), os.getgroups()), ((0, 0, 0), (0, 0, 0), groups))

    def test_what_the_kernel_refuses_is_told(self) -> None:
        need_root()
        found: list[BaseException] = []

        def work() -> None:
            try:
                Identity(1000, 1000).become_in_this_thread()
                SHELL.become_in_this_thread()
            except OSError as error:
                found.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        self.assertIsInstance(found[0], PermissionError)

    def test_a_machine_whose_calls_are_not_known(self) -> None:
        self.patch(platform, "machine", lambda: "m68k")
        self.assertFalse(can_change_identity())
        self.assertRaises(OSError, SHELL.become_in_this_thread)

    def test_ids_that_are_not_mapped(self) -> None:
        table = Path(self.mktemp())
        table.write_text("         0     100000       1500\n")
        self.assertFalse(identity._mapped(2000, str(table)))
        self.assertTrue(identity._mapped(1499, str(table)))
        self.assertFalse(identity._mapped(0, str(table) + ".none"))

    def test_the_command_says_when_it_cannot(self) -> None:
        self.patch(adbd, "can_change_identity", lambda identity: False)
        options = tap.Options()
        options.parseOptions(["--listen", "tcp:0", "--debuggable"])
        self.assertIn("not root", str(self.assertRaises(UsageError, tap.makeService, options)))


class Adb36Tests(RealTestCase):
    async def test_unroot_and_root(self) -> None:
        # AOSP's test_device.py: RootUnrootTest, test_push_error_reporting, test_pull_error_reporting
        need_root()
        adb = await self.attach()
        self.assertTrue(self.daemon.allow_root_and_unroot())
        where = Path(tempfile.mkdtemp(prefix="adb-"))
        self.addCleanup(shutil.rmtree, where)
        where.chmod(0o711)
        secret, mine = where / "secret", where / "mine"
        secret.write_text("for root")
        secret.chmod(0o600)
        (where / "open").mkdir()
        (where / "open").chmod(0o777)

        self.assertEqual((await adb.run("root")).text.strip(), "adbd is already running as root")
        self.assertEqual((await adb.run("unroot")).text.strip(), "restarting adbd as non root")
        await adb.run("wait-for-device")
        self.assertEqual((await adb.run("shell", "id -u; id -g")).text.split(), ["2000", "2000"])
        self.assertIn("1007", (await adb.run("shell", "id -G")).text.split())
        self.assertEqual((await adb.run("exec-out", "id", "-u")).text.strip(), "2000")
        # On a terminal of its own, which it can open again.
        self.assertEqual((await adb.run("shell", "-tt", "id -u </dev/tty")).text.split(), ["2000"])
        self.assertEqual((await adb.run("unroot")).text.strip(), "adbd not running as root")
        said = await adb.run("pull", str(secret), str(mine))
        self.assertIn("Permission denied", said.text)
        said = await adb.run("push", str(secret), str(where / "not-here"))
        self.assertIn("Permission denied", said.text)
        said = await adb.run("push", str(secret), str(where / "open/here"))
        self.assertIn("1 file pushed", said.text)
        self.assertEqual((where / "open/here").stat().st_uid, 2000)

        self.assertEqual((await adb.run("root")).text.strip(), "restarting adbd as root")
        await adb.run("wait-for-device")
        self.assertEqual((await adb.run("shell", "id -u")).text.strip(), "0")
        self.assertIn("1 file pulled", (await adb.run("pull", str(secret), str(mine))).text)
        # The daemon itself was root all the time.
        self.assertEqual((os.geteuid(), await deferToThread(os.geteuid)), (0, 0))
