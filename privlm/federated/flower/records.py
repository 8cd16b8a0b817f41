"""What PrivLM says in a message of Flower: a few named values, and the bytes of privlm.federated.wire.

The bytes are an array of Flower's, which cuts large ones into pieces; nobody but PrivLM reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FIELDS, BODY = "fields", "body"


def packed(fields: Mapping[str, Any], body: bytes = b"") -> Any:
    """A RecordDict. fields: strings, integers and bytes."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    content: dict[str, Any] = {FIELDS: ConfigRecord(dict(fields))}
    if body:
        content[BODY] = ArrayRecord({BODY: Array("uint8", (len(body),), "privlm", body)})
    return RecordDict(content)


def unpacked(content: Any) -> tuple[dict[str, Any], bytes]:
    """Fields and body of `packed`."""
    body = content.array_records[BODY][BODY].data if BODY in content.array_records else b""
    return dict(content.config_records[FIELDS]), bytes(body)
