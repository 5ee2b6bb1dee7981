"""``anbox down`` against sessions that do not end."""

from __future__ import annotations

import shutil
import tempfile
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from anbox_tw.cli._instance import Instance
from anbox_tw.cli.down import _stop_without_up
from anbox_tw.errors import TimedOut
from anbox_tw.network import UnixListener
from anbox_tw.rpc import Dispatcher, Peer, RpcFactory
from anbox_tw.rpc._pb import anbox_session_pb2 as pb


class Deaf:
    """A session that says yes to a stop, and goes on."""

    def __init__(self) -> None:
        self.asked = 0

    def stop(self, request: pb.StopSession, peer: Peer) -> pb.Done:
        self.asked += 1
        return pb.Done()


class DownTests(TestCase):
    async def test_a_session_that_says_yes_and_does_not_end(self) -> None:
        reactor: Any = _reactor
        runtime = tempfile.mkdtemp(prefix="ad-")
        self.addCleanup(shutil.rmtree, runtime, ignore_errors=True)
        where = Instance.locate("default", runtime, create=True)
        session, dispatcher = Deaf(), Dispatcher()
        dispatcher.register("stop_session", pb.StopSession, session.stop)
        listener = UnixListener(reactor, str(where.control), RpcFactory(reactor, dispatcher))
        listener.startService()
        self.addCleanup(listener.stopService)
        stopping = Deferred.fromCoroutine(_stop_without_up(reactor, where, reactor.seconds() + 0.3))
        with self.assertRaises(TimedOut):
            await stopping.addTimeout(5, reactor)
        self.assertEqual(session.asked, 1)
