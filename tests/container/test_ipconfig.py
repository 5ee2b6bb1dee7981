"""ipconfig.txt: Android's reader and our writer against golden bytes."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from anbox_tw.container.ipconfig import (
    MAX_FILE_BYTES,
    IpConfig,
    decode_modified_utf8,
    encode_modified_utf8,
    read_ipconfig,
    write_ipconfig,
)
from anbox_tw.errors import ConfigError
from tests.support import REPOSITORY

VECTORS = json.loads((REPOSITORY / "protocols/ipconfig/vectors/ipconfig.json").read_text())["vectors"]


def record(values: dict[str, Any]) -> IpConfig:
    others = tuple((key, value) for key, value in values.get("others", []))
    return IpConfig(
        values["interface_id"],
        values["assignment"],
        values["address"],
        values["gateway"],
        tuple(values["dns"]),
        others,
    )


class VectorTests(SynchronousTestCase):
    def test_each_file_is_read_as_android_does(self) -> None:
        for vector in VECTORS:
            wanted = [record(each) for each in vector["records"]]
            self.assertEqual(read_ipconfig(bytes.fromhex(vector["hex"])), wanted, vector["name"])

    def test_each_record_of_ours_has_exactly_these_bytes(self) -> None:
        for vector in VECTORS:
            if vector["writable"]:
                data = write_ipconfig(*(record(each) for each in vector["records"]))
                self.assertEqual(data.hex(), vector["hex"], vector["name"])

    def test_a_file_that_is_cut_is_refused_at_each_place_but_between_records(self) -> None:
        for vector in VECTORS:
            data = bytes.fromhex(vector["hex"])
            for length in range(len(data)):
                try:
                    found = read_ipconfig(data[:length])
                except ConfigError:
                    continue
                self.assertTrue(length == 4 or data[:length].endswith(b"\0\3eos"), (vector["name"], length))
                self.assertLessEqual(len(found), len(vector["records"]))


class LimitTests(SynchronousTestCase):
    def test_versions(self) -> None:
        for data in (b"\0\0\0\0", b"\0\0\0\3", b"\xff\xff\xff\xff"):
            self.assertRaises(ConfigError, read_ipconfig, data)

    def test_lengths(self) -> None:
        self.assertRaises(ConfigError, read_ipconfig, b"\0\0\0\2" + bytes(MAX_FILE_BYTES))
        many = [IpConfig(n, "DHCP") for n in range(65)]
        self.assertRaises(ConfigError, read_ipconfig, write_ipconfig(*many))
        self.assertEqual(len(read_ipconfig(write_ipconfig(*many[:64]))), 64)
        servers = tuple(f"10.0.{n // 250}.{n % 250}" for n in range(20000))
        self.assertRaises(ConfigError, write_ipconfig, IpConfig(dns=servers))
        self.assertRaises(ConfigError, write_ipconfig, IpConfig(assignment="x" * 65536))

    def test_what_is_no_address_is_refused(self) -> None:
        for config in (IpConfig(address="x"), IpConfig(gateway="1.2.3"), IpConfig(dns=("",))):
            self.assertRaises(ConfigError, write_ipconfig, config)

    def test_damaged_strings(self) -> None:
        for data in (b"\x80", b"\xc3", b"\xc3a", b"\xe1\x80", b"\xf0\x9f\x98\x80"):
            self.assertRaises(ConfigError, decode_modified_utf8, data)

    def test_modified_utf8_is_javas(self) -> None:
        self.assertEqual(encode_modified_utf8("a\0é€"), b"a\xc0\x80\xc3\xa9\xe2\x82\xac")
        self.assertEqual(encode_modified_utf8("\U0001f600").hex(), "eda0bdedb880")

    @given(st.text())
    @settings(derandomize=True, deadline=None)
    def test_any_text_comes_back(self, text: str) -> None:
        self.assertEqual(decode_modified_utf8(encode_modified_utf8(text)), text)

    @given(
        st.lists(
            st.builds(
                IpConfig,
                st.integers(0, 2**31 - 1),
                st.sampled_from(["STATIC", "DHCP", "UNASSIGNED"]),
                st.none() | st.builds("{}/{}".format, st.ip_addresses(), st.integers(0, 32)),
                st.none() | st.ip_addresses().map(str),
                st.lists(st.ip_addresses().map(str), max_size=4).map(tuple),
            ),
            max_size=4,
        )
    )
    @settings(derandomize=True, deadline=None)
    def test_what_is_written_is_read(self, configs: list[IpConfig]) -> None:
        self.assertEqual(read_ipconfig(write_ipconfig(*configs)), configs)

    @given(st.binary(max_size=200))
    @settings(derandomize=True, deadline=None)
    def test_garbage_gives_a_list_or_a_clear_error(self, data: bytes) -> None:
        try:
            self.assertIsInstance(read_ipconfig(b"\0\0\0\2" + data), list)
        except ConfigError as error:
            self.assertTrue(error.cause)
