"""Keys, certificates, the authority and SPAKE2; adb's own key generator as the peer."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from twisted.internet.defer import Deferred, fail
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.adb import keys as keys_module
from anbox_tw.adb._spake2 import Spake2, decode_point, encode_point
from anbox_tw.adb.auth import Authority
from anbox_tw.adb.keys import (
    AdbKey,
    AdbKeyError,
    PublicKey,
    default_key_path,
    load_or_generate_key,
    load_public_keys,
    load_user_keys,
)
from anbox_tw.adb.pairing import Cipher, PairingFailed, PairingSession, random_code
from anbox_tw.adb.tls import certificate_for, peer_key
from anbox_tw.errors import PeerError
from tests.support import REPOSITORY, adb_binaries

KEY = AdbKey.generate("me@here")


class KeyTests(SynchronousTestCase):
    def test_adb_reads_and_writes_the_same(self) -> None:
        for version, binary in adb_binaries().items():
            folder = self.mktemp()
            os.makedirs(folder)
            path = os.path.abspath(f"{folder}/key")
            environment = {"HOME": folder, "PATH": os.environ["PATH"], "TMPDIR": folder}
            subprocess.run(
                [binary, "keygen", path], check=True, env=environment, capture_output=True, timeout=30
            )
            key = AdbKey.load(path)
            text = Path(f"{path}.pub").read_text()
            self.assertEqual(key.public.to_text(), text.rstrip("\n"), version)
            self.assertEqual(PublicKey.from_text(text), key.public)
            self.assertEqual(AdbKey.from_pem(key.to_pem()).public, key.public)

    def test_blob_shape(self) -> None:
        blob = KEY.public.to_blob()
        self.assertEqual((len(blob), blob[:4], blob[-4:]), (524, b"\x40\0\0\0", b"\x01\0\x01\0"))
        self.assertEqual(PublicKey.from_blob(blob), KEY.public)
        numbers = KEY.public.key.public_numbers()
        n0inv = int.from_bytes(blob[4:8], "little")
        self.assertEqual((n0inv * numbers.n + 1) % (1 << 32), 0)
        self.assertEqual(int.from_bytes(blob[264:520], "little"), pow(2, 4096, numbers.n))
        self.assertRegex(KEY.public.fingerprint(), r"^([0-9A-F]{2}:){15}[0-9A-F]{2}$")

    def test_pkcs1_is_read_too(self) -> None:
        pem = KEY.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
        self.assertIn(b"BEGIN RSA PRIVATE KEY", pem)
        self.assertEqual(AdbKey.from_pem(pem).public, KEY.public)

    def test_signatures(self) -> None:
        token = bytes(range(20))
        signature = KEY.sign(token)
        self.assertEqual((len(signature), signature), (256, KEY.sign(token)))
        self.assertTrue(KEY.public.verify(token, signature))
        self.assertFalse(KEY.public.verify(bytes(20), signature))
        self.assertFalse(KEY.public.verify(token, signature[:-1]))
        self.assertFalse(KEY.public.verify(token + b"x", signature))
        self.assertRaises(AdbKeyError, KEY.sign, b"longer than a token is allowed")
        n = KEY.public.key.public_numbers().n
        padded = pow(int.from_bytes(signature, "big"), 65537, n).to_bytes(256, "big")
        prefix = bytes.fromhex("3021300906052b0e03021a05000414")
        self.assertEqual(padded, b"\0\x01" + b"\xff" * 218 + b"\0" + prefix + token)

    def test_what_is_no_key(self) -> None:
        for text in ("", "####", "QAAAA", "AAAA" * 200, KEY.public.to_text()[:-40], "é"):
            self.assertRaises(AdbKeyError, PublicKey.from_text, text)
        self.assertRaises(AdbKeyError, PublicKey.from_blob, bytes(524))
        self.assertRaises(AdbKeyError, PublicKey.from_blob, b"\x40\0\0\0" + bytes(520))
        self.assertRaises(AdbKeyError, AdbKey.from_pem, b"nothing")
        other = ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self.assertRaises(AdbKeyError, AdbKey.from_pem, other)
        short = rsa.generate_private_key(65537, 1024)
        self.assertRaises(AdbKeyError, AdbKey, short)

    def test_text_ends_at_nul_and_may_lack_a_user(self) -> None:
        text = KEY.public.to_text().split(" ")[0]
        self.assertEqual(PublicKey.from_text(f"{text} @vm\0rest").comment, "@vm")
        self.assertEqual(PublicKey.from_text(f"{text}\n").comment, "")

    def test_files(self) -> None:
        path = os.path.abspath(f"{self.mktemp()}/sub/adbkey")
        key = load_or_generate_key(path)
        self.assertEqual(stat.S_IMODE(os.stat(path).st_mode), 0o600)
        self.assertEqual(load_or_generate_key(path).public, key.public)
        self.assertEqual(load_or_generate_key(path).public.comment, key.public.comment)
        self.assertRaises(AdbKeyError, key.save, path)
        self.assertRaises(AdbKeyError, AdbKey.load, f"{path}-missing")
        Path(path).write_bytes(bytes(keys_module.MAX_KEY_FILE + 1))
        self.assertRaises(AdbKeyError, AdbKey.load, path)
        Path(path).write_bytes(b"damaged")
        self.assertIn(path, str(self.assertRaises(AdbKeyError, AdbKey.load, path)))

    def test_user_and_vendor_keys(self) -> None:
        home = os.path.abspath(self.mktemp())
        os.makedirs(f"{home}/vendor")
        for name in ("a.adb_key", "b.adb_key", "ignored"):
            AdbKey.generate(name).save(f"{home}/vendor/{name}")
        environment = {"HOME": home, "ADB_VENDOR_KEYS": f"{home}/vendor:{home}/vendor/a.adb_key:/nowhere"}
        loaded = load_user_keys(environment)
        self.assertEqual([key.public.comment for key in loaded[1:]], ["a.adb_key", "b.adb_key"])
        self.assertEqual(default_key_path(environment), f"{home}/.android/adbkey")
        self.assertEqual(default_key_path({"ANDROID_USER_HOME": "/x"}), "/x/adbkey")

    def test_lists_of_keys(self) -> None:
        path = self.mktemp()
        Path(path).write_text(f"# comment\n{KEY.public.to_text()}\nnonsense\n\n")
        self.assertEqual(load_public_keys([path]), [KEY.public])

    def test_certificate(self) -> None:
        certificate = certificate_for(KEY)
        self.assertEqual(peer_key(certificate), KEY.public)
        self.assertIsNone(peer_key(None))
        self.assertEqual(certificate.serial_number, 1)
        self.assertEqual(certificate.subject.rfc4514_string(), "CN=Adb,O=Android,C=US")


class AuthorityTests(SynchronousTestCase):
    def test_policies(self) -> None:
        for policy, allowed in (("open", True), ("accept", True), ("refuse", False)):
            authority = Authority(policy)
            self.assertEqual(authority.allows(KEY.public), allowed)
            offered = self.successResultOf(authority.offer(KEY.public.to_text()))
            self.assertEqual(offered, KEY.public if allowed else None)
            self.assertEqual(authority.keys(), {KEY.public} if allowed else set())
        self.assertRaises(AdbKeyError, Authority, "perhaps")
        self.assertRaises(AdbKeyError, Authority, "ask")

    def test_asking(self) -> None:
        for answer, result in ((True, KEY.public), (False, None)):
            authority = Authority("ask", ask=lambda key, answer=answer: answer)  # type: ignore[misc]
            self.assertEqual(self.successResultOf(authority.offer(KEY.public.to_text())), result)
        asking: Deferred[bool] = fail(RuntimeError("no screen"))
        self.failureResultOf(Authority("ask", ask=lambda _: asking).offer(KEY.public.to_text()), RuntimeError)

    def test_store(self) -> None:
        path = os.path.abspath(f"{self.mktemp()}/adb_keys")
        Authority("accept", store=path).allow(KEY.public)
        authority = Authority("refuse", store=path)
        self.assertEqual(authority.keys(), {KEY.public})
        authority.allow(KEY.public)
        self.assertEqual(len(Path(path).read_text().splitlines()), 1)
        token = bytes(20)
        self.assertEqual(authority.signer(token, KEY.sign(token)), KEY.public)
        self.assertIsNone(authority.signer(token, bytes(256)))
        forgetful = Authority("refuse", keys=[KEY.public])
        forgetful.revoke(KEY.public)
        self.assertFalse(forgetful.allows(KEY.public))

    def test_what_is_no_key_is_not_allowed(self) -> None:
        self.assertIsNone(self.successResultOf(Authority("accept").offer("nonsense")))


class Spake2Tests(SynchronousTestCase):
    def load(self) -> Any:
        return json.loads((REPOSITORY / "protocols" / "adb" / "vectors" / "pairing.json").read_text())

    def test_golden(self) -> None:
        vector = self.load()
        password = bytes.fromhex(vector["password"])
        host, device = b"adb pair client\0", b"adb pair server\0"
        alice = Spake2(True, host, device, password, lambda _: bytes.fromhex(vector["alice"]["random"]))
        bob = Spake2(False, device, host, password, lambda _: bytes.fromhex(vector["bob"]["random"]))
        self.assertEqual(alice.message.hex(), vector["alice"]["message"])
        self.assertEqual(bob.message.hex(), vector["bob"]["message"])
        self.assertEqual(alice.key(bob.message).hex(), vector["key"])
        self.assertEqual(bob.key(alice.message).hex(), vector["key"])
        first = vector["first_encrypted"]
        cipher = Cipher(bytes.fromhex(vector["key"]))
        self.assertEqual(cipher.encrypt(bytes.fromhex(first["plain"])).hex(), first["cipher"])
        other = Cipher(bytes.fromhex(vector["key"]))
        self.assertEqual(other.decrypt(bytes.fromhex(first["cipher"])).hex(), first["plain"])
        self.assertRaises(PairingFailed, other.decrypt, bytes.fromhex(first["cipher"]))
        self.assertRaises(PairingFailed, other.decrypt, b"")

    def test_messages_that_are_no_points(self) -> None:
        self.assertRaises(PeerError, decode_point, b"short")
        self.assertRaises(PeerError, decode_point, b"\xff" * 32)
        refused = 0
        for index in range(20):
            try:
                point = decode_point(bytes([index]) * 32)
                self.assertEqual(decode_point(encode_point(point)), point)
            except PeerError:
                refused += 1
        self.assertGreater(refused, 3)

    def exchange(self, mine: bytes, theirs: bytes, cut: int) -> tuple[PairingSession, PairingSession]:
        host = PairingSession(host=True, password=mine, info_kind=0, info=b"key")
        device = PairingSession(host=False, password=theirs, info_kind=1, info=b"guid")
        to_device, to_host = host.start(), device.start()
        while to_device or to_host:
            data, to_device = to_device, b""
            for index in range(0, len(data), cut):
                to_host += device.receive_data(data[index : index + cut])
            data, to_host = to_host, b""
            for index in range(0, len(data), cut):
                to_device += host.receive_data(data[index : index + cut])
        return host, device

    def test_sessions(self) -> None:
        for cut in (1, 1000, 100_000):
            host, device = self.exchange(b"secret", b"secret", cut)
            self.assertEqual((host.peer, device.peer), ((1, "guid"), (0, "key")))
        self.assertRaises(PairingFailed, self.exchange, b"secret", b"guess", 1000)

    def test_broken_packets(self) -> None:
        for bad in (
            b"\x02\x00\0\0\0\x20",
            b"\x01\x01\0\0\0\x20",
            b"\x01\x00\0\0\0\0",
            b"\x01\x00\xff\xff\xff\xff",
            b"\x01\x00\0\0\0\x05short",
        ):
            session = PairingSession(host=True, password=b"x", info_kind=0, info=b"")
            self.assertRaises(PeerError, session.receive_data, bad)
        self.assertRaises(
            PairingFailed, PairingSession, host=True, password=b"x", info_kind=0, info=b"x" * 9000
        )

    def test_codes(self) -> None:
        self.assertRegex(random_code(), r"^\d{6}$")
