"""Child processes: tools that end, do not end, say too much or are not there; daemons that die and that do not want to."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from anbox_tw.errors import TimedOut
from anbox_tw.netd import children
from anbox_tw.netd.children import DaemonChild, find_tool, run_tool
from anbox_tw.netd.errors import KernelRefused
from anbox_tw.netd.nft import Chain, NftTable, Ruleset
from tests.support import need_tool


async def error_of(work: Any) -> Any:
    try:
        await work
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


class ToolTests(TestCase):
    async def test_what_a_tool_says(self) -> None:
        done = await run_tool(reactor, ["sh", "-c", "cat; echo bad >&2; exit 3"], stdin="in")
        self.assertEqual((done.exit_code, done.output, done.error), (3, "in", "bad\n"))
        self.assertEqual((await run_tool(reactor, ["sh", "-c", "kill -9 $$"])).exit_code, -9)

    async def test_one_that_is_not_there(self) -> None:
        error = await error_of(run_tool(reactor, ["no-such-tool-here"]))
        self.assertEqual(error.errno, errno.ENOENT)
        self.assertIsNone(find_tool("/etc/passwd"))
        self.assertEqual(find_tool("/bin/sh"), "/bin/sh")

    async def test_one_that_does_not_end(self) -> None:
        self.assertIsInstance(await error_of(run_tool(reactor, ["sleep", "60"], timeout=0.1)), TimedOut)

    async def test_one_that_says_too_much(self) -> None:
        self.patch(children, "MAX_OUTPUT_BYTES", 100_000)
        error = await error_of(run_tool(reactor, ["yes"], timeout=20))
        self.assertEqual(error.errno, errno.EMSGSIZE)

    async def test_one_that_cannot_be_run(self) -> None:
        class Broken:
            def spawnProcess(self, *args: Any, **options: Any) -> Any:
                raise OSError(errno.EMFILE, "too many")

        error = await error_of(run_tool(Broken(), ["sh"]))
        self.assertEqual(error.errno, errno.EMFILE)
        daemon = DaemonChild(Broken(), "broken", ["sh"])
        self.assertEqual((await error_of(daemon.start())).errno, errno.EMFILE)


class DaemonTests(TestCase):
    async def test_one_that_lives(self) -> None:
        daemon = DaemonChild(reactor, "cat", ["cat"])
        await daemon.start(settle=0.05)
        pid = daemon.pid
        assert pid is not None
        daemon.write(b"said")
        while daemon.tail != b"said":
            waiter: Deferred[None] = Deferred()
            reactor.callLater(0.01, waiter.callback, None)
            await waiter
        await daemon.stop()
        self.assertFalse(os.path.exists(f"/proc/{pid}"))
        await daemon.stop()
        daemon.write(b"late")

    async def test_one_whose_parent_is_killed(self) -> None:
        need_tool("setpriv")
        code = """
            from twisted.internet import reactor
            from twisted.internet.defer import Deferred
            from anbox_tw.netd.children import DaemonChild

            daemon = DaemonChild(reactor, "sleep", ["sleep", "60"])

            async def work():
                await daemon.start(settle=0.2)
                print(daemon.pid, flush=True)

            reactor.callWhenRunning(lambda: Deferred.fromCoroutine(work()))
            reactor.run()
        """
        parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE)
        assert parent.stdout is not None
        pid = int(await deferToThread(parent.stdout.readline))
        parent.stdout.close()
        self.assertIn(b"sleep\x0060", Path(f"/proc/{pid}/cmdline").read_bytes())
        parent.kill()
        await deferToThread(parent.wait)
        try:
            for _ in range(200):
                # one that nobody has waited for yet is a zombie, without a command line
                if not os.path.exists(f"/proc/{pid}") or not Path(f"/proc/{pid}/cmdline").read_bytes():
                    break
                await deferLater(reactor, 0.01)
            else:
                self.fail("it lives on")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def test_one_that_ends_at_once(self) -> None:
        ended: list[DaemonChild] = []
        daemon = DaemonChild(reactor, "it", ["sh", "-c", "echo no such device; exit 1"], on_exit=ended.append)
        error = await error_of(daemon.start(settle=10))
        self.assertEqual(error.errno, errno.EREMOTEIO)
        self.assertIn("no such device", str(error))
        self.assertEqual(ended, [daemon])
        missing = DaemonChild(reactor, "none", ["no-such-daemon-here"])
        self.assertEqual((await error_of(missing.start())).errno, errno.ENOENT)

    async def test_one_that_ignores_sigterm(self) -> None:
        self.patch(children, "KILL_AFTER_S", 0.2)
        daemon = DaemonChild(
            reactor, "stubborn", ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"]
        )
        await daemon.start(settle=0.5)
        await daemon.stop()
        self.assertIsNone(daemon.pid)


class TableTests(TestCase):
    """What becomes of the wish when nft says no."""

    async def test_a_refused_transaction_changes_nothing(self) -> None:
        said: list[str] = []
        table = NftTable(reactor, dry_run=said.append)

        def good(rules: Ruleset) -> None:
            rules.objects["counter", "c"] = {}
            rules.chains["one"] = Chain(rules=[[{"counter": "c"}]])

        await table.change(good)
        self.assertEqual(len(said), 6)
        said.clear()
        await table.change(good)
        self.assertEqual(said, [])

        def too_many(rules: Ruleset) -> None:
            rules.chains["one"].rules = [[{"counter": "c"}]] * 5000

        self.assertEqual((await error_of(table.change(too_many))).errno, errno.ENOSPC)

        async def refuse(*args: Any, **options: Any) -> children.Completed:
            return children.Completed(1, "", "Error: Could not process rule: Device or resource busy\n")

        table._dry_run = None
        from anbox_tw.netd import nft

        self.patch(nft, "run_tool", refuse)

        def more(rules: Ruleset) -> None:
            rules.chains["two"] = Chain("filter", "input", 0, [[{"drop": None}]])

        error = await error_of(table.change(more))
        self.assertIsInstance(error, KernelRefused)
        self.assertEqual(error.errno, errno.EBUSY)
        self.assertEqual(list(table.current.chains), ["one"])
        self.assertEqual((await error_of(table.objects("quota"))).errno, errno.EBUSY)
        self.assertEqual((await error_of(table.seconds_left("x"))).errno, errno.EBUSY)
        self.assertEqual(nft.errno_in("nonsense"), errno.EINVAL)

    async def test_an_object_that_changes_is_made_anew_between_its_rules(self) -> None:
        said: list[str] = []
        table = NftTable(reactor, dry_run=said.append)
        for generation in (1, 2):

            def edit(rules: Ruleset, generation: int = generation) -> None:
                rules.objects["quota", "q"] = {"bytes": 10, "_generation": generation}
                rules.chains["one"] = Chain(rules=[[{"quota": "q"}]])

            said.clear()
            await table.change(edit)
        self.assertEqual([line.split('"')[1] for line in said], ["flush", "delete", "add", "add"])
        self.assertNotIn("_generation", "".join(said))
        self.assertEqual(await table.objects("quota"), {})
        self.assertEqual(await table.seconds_left("x"), [])
