"""Channels over real UNIX and TCP sockets."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from anbox_tw.rpc import Channel, ChannelClosed, Dispatcher, Peer, RemoteError, RpcFactory, connect
from anbox_tw.rpc._framing import FrameReader, encode_invocation, invocation_prefix
from anbox_tw.rpc._pb.anbox_bridge_pb2 import ClipboardData
from anbox_tw.rpc._pb.anbox_rpc_pb2 import Invocation, Result, Void

reactor: Any = _reactor


@contextmanager
def plain_client(path: str) -> Iterator[socket.socket]:
    """A blocking client that knows nothing of our code."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(path)
        yield client


class SocketTests(TestCase):
    timeout = 20

    async def listen(self, description: str) -> Any:
        port = await serverFromString(reactor, description).listen(self.factory)
        self.addCleanup(port.stopListening)
        self.addCleanup(self.factory.close_all)
        return port

    async def dial(self, description: str, **more: Any) -> Channel:
        channel = await connect(clientFromString(reactor, description), reactor, **more)
        self.addCleanup(channel.close)
        return channel

    def setUp(self) -> None:
        self.path = f"{self.mktemp()}.socket"
        if len(self.path) > 100:
            self.path = os.path.relpath(self.path)
        self.dispatcher = Dispatcher()
        self.factory = RpcFactory(reactor, self.dispatcher)
        self.dispatcher.register("echo", ClipboardData, lambda request, peer: request)
        self.peers: list[Peer] = []

        def who(request: Void, peer: Peer) -> ClipboardData:
            self.peers.append(peer)
            seen = peer.credentials
            return ClipboardData(text=f"{seen.pid} {seen.uid} {seen.gid}" if seen else "unknown")

        self.dispatcher.register("who", Void, who)

    async def test_credentials_of_a_unix_peer(self) -> None:
        await self.listen(f"unix:{self.path}")
        channel = await self.dial(f"unix:{self.path}")
        answer = await channel.call("who", Void(), ClipboardData)
        self.assertEqual(answer.text, f"{os.getpid()} {os.geteuid()} {os.getegid()}")
        self.assertIn(f"uid {os.geteuid()}", self.peers[0].name)

    async def test_no_credentials_over_tcp(self) -> None:
        port = await self.listen("tcp:0:interface=127.0.0.1")
        channel = await self.dial(f"tcp:127.0.0.1:{port.getHost().port}")
        self.assertEqual((await channel.call("who", Void(), ClipboardData)).text, "unknown")

    async def test_many_large_calls_both_ways_at_once(self) -> None:
        await self.listen(f"unix:{self.path}")
        mine = Dispatcher()
        mine.register("echo", ClipboardData, lambda request, peer: request)
        channel = await self.dial(f"unix:{self.path}", dispatcher=mine)
        await channel.call("who", Void(), ClipboardData)
        texts = ["x" * (size * 1000) for size in range(1, 40)]
        calls = [channel.call("echo", ClipboardData(text=text), ClipboardData) for text in texts]
        calls += [self.peers[0].call("echo", ClipboardData(text=text), ClipboardData) for text in texts]
        answers = await gatherResults(calls)
        self.assertEqual([answer.text for answer in answers], texts + texts)

    async def test_answers_the_kernel_does_not_take_at_once_keep_their_order(self) -> None:
        await self.listen(f"unix:{self.path}")

        def talk() -> list[int]:
            with plain_client(self.path) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                frames = b""
                for call_id in range(300):
                    body = ClipboardData(text="y" * (call_id * 37 % 9000)).SerializeToString()
                    frames += encode_invocation(call_id, invocation_prefix("echo"), body)
                sender = threading.Thread(target=client.sendall, args=(frames,))
                sender.start()
                reader = FrameReader()
                ids: list[int] = []
                while len(ids) < 300:
                    for _, payload in reader.receive_data(client.recv(3000)):
                        result = Result.FromString(payload)
                        self.assertEqual(
                            len(ClipboardData.FromString(result.response).text), result.id * 37 % 9000
                        )
                        ids.append(result.id)
                sender.join()
                return ids

        self.assertEqual(await deferToThread(talk), list(range(300)))

    async def test_unknown_method_of_a_real_peer(self) -> None:
        await self.listen(f"unix:{self.path}")
        channel = await self.dial(f"unix:{self.path}")
        with self.assertRaises(RemoteError) as caught:
            await channel.call("fly", Void(), Void)
        self.assertEqual(caught.exception.code, "ANBOX-R002")

    async def test_listener_going_away_fails_the_call(self) -> None:
        await self.listen(f"unix:{self.path}")
        self.dispatcher.register("wait", Void, lambda request, peer: Deferred())
        channel = await self.dial(f"unix:{self.path}")
        call = channel.call("wait", Void(), Void, timeout=None)
        await channel.call("who", Void(), ClipboardData)
        await self.factory.close_all()
        with self.assertRaises(ChannelClosed):
            await call

    async def test_client_that_half_closes_still_gets_its_answer(self) -> None:
        await self.listen(f"unix:{self.path}")

        def talk() -> bytes:
            with plain_client(self.path) as client:
                message = Invocation(id=5, method_name="who", parameters=b"", protocol_version=1)
                payload = message.SerializeToString()
                client.sendall(len(payload).to_bytes(3, "big") + b"\0" + payload)
                client.shutdown(socket.SHUT_WR)
                got = b""
                while chunk := client.recv(4096):
                    got += chunk
                return got

        [(_, payload)] = FrameReader().receive_data(await deferToThread(talk))
        self.assertEqual(Result.FromString(payload).id, 5)

    async def test_garbage_ends_the_connection_and_nothing_else(self) -> None:
        await self.listen(f"unix:{self.path}")
        channel = await self.dial(f"unix:{self.path}")

        def talk(garbage: bytes) -> bytes:
            with plain_client(self.path) as client:
                client.sendall(garbage)
                try:
                    return client.recv(1)
                except ConnectionResetError:
                    return b""

        for garbage in (b"GET / HTTP/1.0\r\n\r\n", b"\xff" * 1000, b"\0\0\x02\0\xff\xff", b"\0\0\0\0"):
            self.assertEqual(await deferToThread(talk, garbage), b"", garbage)
        self.assertEqual((await channel.call("echo", ClipboardData(text="on"), ClipboardData)).text, "on")
