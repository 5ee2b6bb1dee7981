"""Fetching from a real server that does what servers do: breaks off, restarts, lies, and is slow."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.ssl import Certificate, CertificateOptions, trustRootFromCertificates
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS
from twisted.web.iweb import IAgent
from zope.interface import implementer

from anbox_tw.container.diagnosis import DiagnosedError
from anbox_tw.container.imagestore import Fetcher, FetchOptions, ImageStore, Installer, Version
from anbox_tw.container.imagestore import fetch as fetch_module
from anbox_tw.container.imagestore.fetch import FetchFailed
from anbox_tw.errors import AlreadyRunning, ConfigError, HostLacks
from tests.container.imagestore.server import Server, cut, digest, redirect, squashfs, stall, status
from tests.session.guest import until
from tests.support import need_root


class FetchCase(TestCase):
    timeout = 60

    def setUp(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="ar-")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self.store = ImageStore(f"{self.directory}/store")
        self.patch(fetch_module, "RETRY_DELAY_S", 0.01)
        self.server = Server(self)
        self.image = squashfs()

    async def fetch(self, *urls: str, name: str = "android", agent: Any = None, **options: Any) -> Version:
        options.setdefault("timeout", 20.0)
        installer = Installer(reactor, self.store, Fetcher(reactor, agent))
        version, self.new = await installer.fetch(name, urls, FetchOptions(**options), progress=self.progress)
        return version

    def progress(self, done: int, whole: int | None) -> None:
        self.told = (done, whole)

    async def fails(self, error: type[Exception], *urls: str, **options: Any) -> str:
        """The fetch fails with ``error``, and the store is as before; returns the words."""
        before = self.content()
        with self.assertRaises(error) as caught:
            await self.fetch(*urls, **options)
        self.assertEqual(self.content(), before)
        return str(caught.exception)

    def content(self) -> dict[str, Any]:
        return {
            name: [(v.version, v.current, Path(v.path).read_bytes()) for v in self.store.versions(name)]
            for name in self.store.names()
        }

    def partial(self) -> int:
        path = Path(self.store.root, "android/partial/file")
        return path.stat().st_size if path.exists() else 0


class GoodTests(FetchCase):
    async def test_fetched_checked_and_used(self) -> None:
        served = self.server.put_image("android.img", self.image)
        version = await self.fetch(self.server.url("android.img"))
        self.assertEqual((version.kind, version.size, version.current), ("squashfs", len(self.image), True))
        self.assertEqual(Path(version.path).read_bytes(), self.image)
        self.assertEqual(
            (version.sha256, version.source), (digest(self.image), self.server.url("android.img"))
        )
        self.assertEqual(self.told, (len(self.image), len(self.image)))
        self.assertEqual(served.asked, [None])
        self.assertEqual(sorted(os.listdir(self.store.root / "android")), ["current", "lock", "versions"])
        # the same again changes nothing
        self.assertTrue(self.new)
        again = await self.fetch(self.server.url("android.img"), sha256=digest(self.image))
        self.assertEqual((again, self.new), (version, False))
        self.assertEqual(len(served.asked), 1)

    async def test_where_the_checksum_is(self) -> None:
        self.server.put("a.img", self.image)
        self.server.put("SHA256SUMS", f"{'0' * 64} *b.img\n{digest(self.image).upper()} *a.img\n".encode())
        self.assertTrue((await self.fetch(self.server.url("a.img?x=1"))).current)
        other = squashfs()
        self.server.put("c.img", other)
        words = await self.fails(FetchFailed, self.server.url("c.img"))
        self.assertIn("--sha256", words)
        await self.fetch(self.server.url("c.img"), check=False)
        self.assertRaises(ConfigError, FetchOptions, sha256="abc")

    async def test_a_server_that_is_not_there_yet(self) -> None:
        served = self.server.put_image("android.img", self.image)
        sums = self.server.root.children[b"android.img.sha256"]
        sums.faults = [status(503), cut(3)]
        await self.fetch(self.server.url("android.img"))
        self.assertEqual((len(sums.asked), len(served.asked)), (3, 1))
        # without the file, it is the file that is missed and not its checksum
        words = await self.fails(FetchFailed, self.server.url("none.img"))
        self.assertIn("404", words)
        url = self.server.url("android.img")
        await self.server.stop()
        words = await self.fails(FetchFailed, url, retries=2)
        self.assertIn("gave up after 3 attempts", words)

    async def test_checksums_without_end(self) -> None:
        self.server.put("android.img", self.image)
        self.server.put("android.img.sha256", b"0" * 2_000_000)
        self.assertIn("too long", await self.fails(FetchFailed, self.server.url("android.img")))

    async def test_a_new_version_and_back(self) -> None:
        served = self.server.put_image("android.img", self.image)
        first = await self.fetch(self.server.url("android.img"))
        new = squashfs()
        served = self.server.put_image("android.img", new, '"2"')
        second = await self.fetch(self.server.url("android.img"))
        self.assertEqual([v.current for v in self.store.versions("android")], [False, True])
        self.assertNotEqual(first.version, second.version)
        self.assertEqual(self.store.rollback("android").sha256, digest(self.image))
        self.assertEqual(Path(self.store.current("android").path).read_bytes(), self.image)
        # fetched again it is found in the store
        await self.fetch(self.server.url("android.img"))
        self.assertEqual(self.store.current("android").sha256, digest(new))
        self.assertEqual(len(self.store.versions("android")), 2)
        self.assertEqual(served.asked, [None, None])

    async def test_redirects(self) -> None:
        target = self.server.put_image("android.img", self.image)
        self.server.put("latest.img", b"").faults = [redirect(self.server.url("android.img"))]
        version = await self.fetch(self.server.url("latest.img"), sha256=digest(self.image))
        self.assertEqual(version.size, len(self.image))
        self.server.put("loop.img", b"").faults = [redirect(self.server.url("loop.img"))] * 20
        await self.fails(FetchFailed, self.server.url("loop.img"), sha256="0" * 64, retries=0)
        self.assertEqual(len(target.asked), 1)

    async def test_a_large_file_goes_through_in_pieces(self) -> None:
        large = squashfs(20_000_000)
        served = self.server.put_image("android.img", large)
        served.faults = [cut(7_000_000)]
        await self.fetch(self.server.url("android.img"))
        self.assertEqual(self.store.current("android").sha256, digest(large))
        assert served.asked[1] is not None


class FaultTests(FetchCase):
    async def test_broken_off_and_resumed(self) -> None:
        served = self.server.put_image("android.img", self.image)
        served.faults = [cut(100_000), cut(50_000), None]
        await self.fetch(self.server.url("android.img"))
        self.assertEqual(served.asked, [None, "bytes=100000-", "bytes=150000-"])
        self.assertEqual(Path(self.store.current("android").path).read_bytes(), self.image)

    async def test_resumed_by_the_next_command(self) -> None:
        served = self.server.put_image("android.img", self.image)
        served.faults = [cut(100_000), status(503), status(503)]
        words = await self.fails(FetchFailed, self.server.url("android.img"), retries=1)
        self.assertIn("100000 bytes are kept", words)
        self.assertEqual(self.partial(), 100_000)
        await self.fetch(self.server.url("android.img"))
        self.assertEqual(served.asked[-1], "bytes=100000-")

    async def test_the_file_has_changed_meanwhile(self) -> None:
        served = self.server.put_image("android.img", self.image)
        served.faults = [cut(100_000)]
        self.assertIn("gave up", await self.fails(FetchFailed, self.server.url("android.img"), retries=0))
        new = squashfs(200_000)
        served = self.server.put_image("android.img", new, '"2"')
        await self.fetch(self.server.url("android.img"))
        self.assertEqual(served.asked, ["bytes=100000-"])  # If-Range says: the whole, please
        self.assertEqual(Path(self.store.current("android").path).read_bytes(), new)

    async def test_a_server_without_validators_that_has_changed_the_file(self) -> None:
        served = self.server.put_image("android.img", self.image, "")
        served.faults = [cut(100_000)]
        await self.fails(FetchFailed, self.server.url("android.img"), retries=0)
        new = squashfs()
        served = self.server.put_image("android.img", new, "")
        await self.fetch(self.server.url("android.img"))
        self.assertEqual(served.asked, ["bytes=100000-", None])
        self.assertEqual(Path(self.store.current("android").path).read_bytes(), new)

    async def test_without_any_checksum_nothing_unsure_is_continued(self) -> None:
        served = self.server.put("android.img", self.image, "")
        served.faults = [cut(100_000)]
        await self.fetch(self.server.url("android.img"), check=False)
        self.assertEqual(served.asked, [None, None])
        self.assertEqual(Path(self.store.current("android").path).read_bytes(), self.image)

    async def test_everything_was_there_already(self) -> None:
        served = self.server.put_image("android.img", self.image)
        served.faults = [cut(len(self.image) - 1)]
        await self.fails(FetchFailed, self.server.url("android.img"), retries=0)
        with open(self.store.root / "android/partial/file", "ab") as file:
            file.write(self.image[-1:])
        await self.fetch(self.server.url("android.img"))  # 416
        self.assertEqual(served.asked[-1], f"bytes={len(self.image)}-")

    async def test_not_what_was_promised(self) -> None:
        good = self.server.put_image("android.img", self.image)
        await self.fetch(self.server.url("android.img"))
        self.server.put("bad.img", squashfs())
        words = await self.fails(FetchFailed, self.server.url("bad.img"), sha256="0" * 64)
        self.assertIn("promised", words)
        self.assertEqual(self.partial(), 0)
        # and one that lies about its length
        liar = self.server.put_image("liar.img", squashfs())
        liar.faults = [stall(1000)] * 3
        await self.fails(FetchFailed, self.server.url("liar.img"), timeout=0.3, retries=0)
        self.assertEqual(len(good.asked), 1)

    async def test_no_image(self) -> None:
        for data, what in (
            (b"<html>not found</html>", "first bytes"),
            (b"", "empty"),
            (self.image[:1000], "cut short"),
        ):
            self.server.put_image("android.img", data, "")
            self.assertIn(what, await self.fails(DiagnosedError, self.server.url("android.img")))
            self.assertEqual(self.store.names(), [])
            self.assertEqual(os.listdir(self.store.root), [])

    async def test_mirrors(self) -> None:
        gone = self.server.put_image("gone.img", self.image)
        gone.faults = [status(404)]
        dead = Server(self)
        dead_url = dead.url("android.img")
        await dead.stop()
        half = self.server.put_image("half.img", self.image)
        half.faults = [cut(120_000), *[status(500)] * 5]
        good = self.server.put("good.img", self.image, '"other"')
        version = await self.fetch(
            self.server.url("gone.img"),
            dead_url,
            self.server.url("half.img"),
            self.server.url("good.img"),
            sha256=digest(self.image),
            retries=1,
        )
        self.assertEqual(version.source, self.server.url("good.img"))
        self.assertEqual(good.asked, ["bytes=120000-"])  # what the other mirror gave is worth something
        words = await self.fails(
            FetchFailed, dead_url, self.server.url("none.img"), sha256="0" * 64, retries=0
        )
        self.assertIn("404", words)
        self.assertIn("refused", words)

    async def test_a_slow_server(self) -> None:
        served = self.server.put_image("android.img", self.image)
        served.faults = [stall(1000), None]
        await self.fetch(self.server.url("android.img"), timeout=0.5)
        self.assertEqual(served.asked, [None, "bytes=1000-"])
        mute = self.server.put_image("mute.img", self.image)
        mute.faults = [stall(0)] * 9
        words = await self.fails(
            FetchFailed, self.server.url("mute.img"), timeout=0.2, retries=1, sha256="1" * 64
        )
        self.assertIn("gave up after 2 attempts", words)

    async def test_the_server_is_restarted(self) -> None:
        served = self.server.put_image("android.img", self.image)
        served.faults = [stall(100_000)]
        fetching = ensureDeferred(
            self.fetch(self.server.url("android.img"), sha256=digest(self.image), retries=50)
        )
        await until(lambda: self.partial() == 100_000)
        await self.server.restart()
        await fetching
        self.assertEqual(served.asked, [None, "bytes=100000-"])

    async def test_a_cancelled_fetch_is_continued(self) -> None:
        served = self.server.put_image("android.img", self.image)
        served.faults = [stall(100_000)]
        fetching = ensureDeferred(self.fetch(self.server.url("android.img")))
        await until(lambda: self.partial() == 100_000)
        with self.assertRaises(AlreadyRunning):
            await self.fetch(self.server.url("android.img"))
        fetching.cancel()
        with self.assertRaises(CancelledError):
            await fetching
        self.assertEqual(self.store.names(), [])
        await self.fetch(self.server.url("android.img"))
        self.assertEqual(served.asked, [None, "bytes=100000-"])

    async def test_cancelled_while_it_connects(self) -> None:
        asked = []

        @implementer(IAgent)
        class Stuck:
            def request(self, *arguments: Any) -> Deferred[Any]:
                asked.append(arguments)
                return Deferred(lambda deferred: deferred.errback(ConnectingCancelledError(None)))

        fetching = ensureDeferred(self.fetch("http://h/a.img", sha256="0" * 64, agent=Stuck()))
        fetching.cancel()
        with self.assertRaises(CancelledError):
            await fetching
        self.assertEqual(len(asked), 1)
        slow = ensureDeferred(self.fetch("http://h/a.img", timeout=0.05, retries=1, agent=Stuck()))
        with self.assertRaises(FetchFailed):
            await slow
        self.assertEqual(len(asked), 3)

    async def test_no_room_for_it(self) -> None:
        served = self.server.put_image("android.img", self.image)
        usage = shutil.disk_usage(self.directory)
        self.patch(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        words = await self.fails(HostLacks, self.server.url("android.img"))
        self.assertIn("1000 are free", words)
        self.assertEqual(self.store.names(), [])
        self.assertFalse((self.store.root / "android").exists())
        self.assertEqual(len(served.asked), 1)

    async def test_the_disk_fills_up(self) -> None:
        need_root()
        os.mkdir(self.store.root)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(self.store.root)], check=True)
        self.addCleanup(subprocess.run, ["umount", str(self.store.root)], check=True)
        served = self.server.put_image("android.img", self.image)
        # without a length nobody can know it before
        served.faults = [lambda request, data: (request.write(data), b"")[1]]
        words = await self.fails(HostLacks, self.server.url("android.img"))
        self.assertIn("is full", words)
        self.assertEqual(os.listdir(self.store.root), [])

    async def test_urls_that_cannot_be(self) -> None:
        for url in ("ftp://x/y", "file:///etc/passwd", "android.img", "http://h/\u00e4.img", "http://h/a b"):
            await self.fails(ConfigError, url)


class SecureTests(FetchCase):
    def setUp(self) -> None:
        super().setUp()
        key, certificate = make_certificate()
        self.secure = Server(self, CertificateOptions(privateKey=key, certificate=certificate))
        trust = trustRootFromCertificates([Certificate(certificate)])
        self.agent = Agent(reactor, BrowserLikePolicyForHTTPS(trustRoot=trust))

    async def test_the_certificate_is_checked(self) -> None:
        self.secure.put_image("android.img", self.image)
        url = self.secure.url("android.img")
        await self.fails(FetchFailed, url, sha256=digest(self.image), retries=0)
        version = await self.fetch(url, agent=self.agent)
        self.assertEqual(version.source, url)
        # a name that the certificate does not have
        other = url.replace("localhost", "127.0.0.1")
        await self.fails(
            FetchFailed, other, name="other", sha256=digest(self.image), retries=0, agent=self.agent
        )

    async def test_https_does_not_lead_to_http(self) -> None:
        self.server.put_image("android.img", self.image)
        served = self.secure.put("android.img", b"")
        served.faults = [redirect(self.server.url("android.img"))]
        words = await self.fails(
            FetchFailed, self.secure.url("android.img"), sha256=digest(self.image), agent=self.agent
        )
        self.assertIn("from https to http:", words)


def make_certificate() -> tuple[Any, Any]:
    """A key and a certificate for ``localhost``, as pyOpenSSL has them."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID
    from OpenSSL import crypto

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return crypto.PKey.from_cryptography_key(key), crypto.X509.from_cryptography(certificate)
