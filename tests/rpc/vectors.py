"""The golden frames of ``protocols/rpc/vectors``, made with protoc's own encoder."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf import text_format

from anbox_tw.rpc._pb import anbox_bridge_pb2, anbox_container_pb2, anbox_rpc_pb2
from tests.support import REPOSITORY

FRAMES: list[dict[str, Any]] = json.loads(
    (REPOSITORY / "protocols" / "rpc" / "vectors" / "frames.json").read_text()
)["frames"]

_MODULES: dict[str, Any] = {
    "rpc": anbox_rpc_pb2,
    "container": anbox_container_pb2,
    "bridge": anbox_bridge_pb2,
}


def message_of(vector: dict[str, Any]) -> Any:
    """The message of one vector, built from its text form."""
    _, _, package, name = vector["message"].split(".")
    return text_format.Parse(vector["text"], getattr(_MODULES[package], name)())
