"""The committed messages are those of the committed schemas, and those of the original."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from twisted.trial.unittest import SynchronousTestCase

from tests.support import REPOSITORY, missing

SCHEMAS = REPOSITORY / "protocols" / "rpc"
NAMES = ("anbox_rpc", "anbox_container", "anbox_bridge", "anbox_session")

ORIGINAL = {
    "anbox.protobuf.rpc": {
        "Invocation": {1: "required uint32 id", 2: "required string method_name", 3: "required bytes parameters", 4: "required uint32 protocol_version"},
        "Result": {1: "optional uint32 id", 2: "optional bytes response", 3: "repeated bytes events"},
        "StructuredError": {1: "optional uint32 domain", 2: "optional uint32 code"},
        "Void": {127: "optional string error", 128: "optional StructuredError structured_error"},
    },
    "anbox.protobuf.container": {
        "Configuration": {1: "repeated BindMount bind_mounts", 2: "repeated Devices devices", 3: "repeated string extra_properties"},
        "StartContainer": {1: "required Configuration configuration"},
        "StopContainer": {1: "optional bool force"},
    },
    "anbox.protobuf.bridge": {
        "Intent": {1: "optional string action", 2: "optional string uri", 3: "optional string type", 4: "optional string package", 5: "optional string component", 6: "repeated string categories"},
        "ClipboardData": {1: "optional string text", 127: "optional string error", 128: "optional StructuredError structured_error"},
        "LaunchApplication": {1: "required Intent intent", 2: "optional Rect launch_bounds", 3: "optional Stack stack"},
        "SetFocusedTask": {1: "required int32 id"},
        "RemoveTask": {1: "required int32 id"},
        "ResizeTask": {1: "required int32 id", 2: "required int32 resize_mode", 3: "required Rect rect"},
        "BootFinishedEvent": {1: "optional bool first_boot_done"},
        "EventSequence": {1: "optional BootFinishedEvent boot_finished", 2: "optional WindowStateUpdateEvent window_state_update", 3: "optional ApplicationListUpdateEvent application_list_update", 127: "optional string error", 128: "optional StructuredError structured_error"},
    },
}  # fmt: skip
"""What the schemas of the Anbox C++ original hold (``src/anbox/protobuf``), number by number."""

LABELS = {1: "optional", 2: "required", 3: "repeated"}
TYPES = {1: "double", 5: "int32", 8: "bool", 9: "string", 12: "bytes", 13: "uint32", 17: "sint32"}


def compiled(out: Path) -> FileDescriptorSet:
    """Run protoc over the schemas; the generated files land in ``out``."""
    if importlib.util.find_spec("grpc_tools") is None:
        missing("grpcio-tools, which carries protoc")
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{SCHEMAS}",
        f"--python_out={out}",
        f"--pyi_out={out}",
    ]
    command += [f"--descriptor_set_out={out / 'set'}", *(f"{name}.proto" for name in NAMES)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return FileDescriptorSet.FromString((out / "set").read_bytes())


class DriftTests(SynchronousTestCase):
    def test_committed_messages_are_those_of_the_schemas(self) -> None:
        out = Path(self.mktemp())
        out.mkdir()
        fresh = {file.name: file for file in compiled(out).file}
        for name in NAMES:
            module = importlib.import_module(f"anbox_tw.rpc._pb.{name}_pb2")
            committed = FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
            expected = fresh[f"{name}.proto"]
            # protoc's set carries these, the Python output leaves them out.
            for field in (field for message in expected.message_type for field in message.field):
                field.ClearField("json_name")
            for message in expected.message_type:
                for nested in message.nested_type:
                    for field in nested.field:
                        field.ClearField("json_name")
            self.assertEqual(committed, expected, f"{name}_pb2.py is stale: see protocols/rpc/README.md")
            stub = REPOSITORY / "anbox_tw" / "rpc" / "_pb" / f"{name}_pb2.pyi"
            self.assertEqual(
                stub.read_text().split(), (out / f"{name}_pb2.pyi").read_text().split(), f"{stub} is stale"
            )

    def test_schemas_import_nothing_from_each_other(self) -> None:
        for name in NAMES:
            self.assertNotIn("\nimport ", (SCHEMAS / f"{name}.proto").read_text())


class CompatibilityTests(SynchronousTestCase):
    def test_fields_of_the_original_are_unchanged_and_ours_come_later(self) -> None:
        for name in NAMES[:3]:
            module = importlib.import_module(f"anbox_tw.rpc._pb.{name}_pb2")
            file = FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
            self.assertEqual(file.syntax, "")  # proto2
            messages = {message.name: message for message in file.message_type}
            for message_name, fields in ORIGINAL[file.package].items():
                found = {
                    field.number: f"{LABELS[field.label]} "
                    f"{TYPES.get(field.type) or field.type_name.rsplit('.', 1)[1]} {field.name}"
                    for field in messages[message_name].field
                }
                theirs = {number: text for number, text in found.items() if not 10 <= number < 100}
                self.assertEqual(theirs, fields, f"{file.package}.{message_name}")
                ours = {number: text for number, text in found.items() if 10 <= number < 100}
                for number, text in ours.items():
                    self.assertFalse(text.startswith("required"), f"{message_name}.{number}: {text}")
