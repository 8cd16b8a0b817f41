"""What a SuperNode does for a client: its ClientApp is started for each message, and keeps files from one to the next.

Settings of a node (flower-supernode --node-config), all but one of the first two at will:

    partition-id=0 num-partitions=2   it serves each second client of the federation, from the first on
    client="NAME"                     it serves this one
    data-path="FILE"                  its own rows, in the place of the configuration's data.path
    folder="DIR"                      where clients keep their own parts and their ledgers; default: FLWR_HOME/privlm
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import privlm
from privlm.errors import PrivLMError, UsageError
from privlm.federated.engine import answer, described
from privlm.federated.flower import export, installed, records
from privlm.federated.flower.ledger_copies import written_after
from privlm.federated.messages import Reply
from privlm.federated.rounds import CLIENTS, federation_of
from privlm.federated.worker import Place, Worker
from privlm.privacy.ledger_paths import client_ledger


def client_app(app: Path) -> Any:
    """The ClientApp of an exported app, `app` its folder. Raises UsageError without a Flower that is supported."""
    installed.require()
    from flwr.app import Message
    from flwr.clientapp import ClientApp

    flower = ClientApp()

    @flower.query()
    def query(message: Any, context: Any) -> Any:
        return Message(records.packed(told_of(context.node_config)), reply_to=message)

    @flower.train()
    def train(message: Any, context: Any) -> Any:
        fields, body = records.unpacked(message.content)
        told, reply = work(export.read_config(app), context.node_config, fields, body)
        return Message(records.packed(told, reply), reply_to=message)

    return flower


def told_of(node: Mapping[str, Any]) -> dict[str, Any]:
    """Whom a node serves, by its settings."""
    return {
        "client": str(node.get("client", "")),
        "partition": int(node.get("partition-id", -1)),
        "partitions": int(node.get("num-partitions", 0)),
        "version": privlm.__version__,
    }


def work(
    config: dict[str, Any], node: Mapping[str, Any], fields: Mapping[str, Any], body: bytes
) -> tuple[dict[str, Any], bytes]:
    """What a message asks for: the fields and the body of the reply, which never hold text of the client's rows.

    config: of the run, as plain values. node: the settings of the node.
    """
    place = _place(node, fields, config["task"]["name"])
    assert place.run is not None
    ledger = client_ledger(place.run, fields["client"])
    try:
        if fields["ledger"] >= 0:
            written_after(ledger, fields["ledger"])  # refuses before anything is released
        told, reply = _work(_with_data_of(config, node), place, fields, body)
    except Exception as error:  # a client that fails is no failure of the round
        reason = str(error) if isinstance(error, PrivLMError) else described(error)
        return {"kind": "failure", "reason": reason}, b""
    if fields["ledger"] >= 0:
        told |= {"start": fields["ledger"], "lines": written_after(ledger, fields["ledger"])}
    return told, reply


def _work(config: dict[str, Any], place: Place, fields: Mapping[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    client = fields["client"]
    federation = federation_of(config)
    if client not in federation.data:
        raise UsageError(f"this node has no rows of client {client}: see its --node-config data-path")
    if fields["rows"] not in (-1, len(federation.data[client])):
        raise UsageError(
            f"this node has {len(federation.data[client])} rows of client {client}, and its noise was planned for "
            f"{fields['rows']}: the server's data has to have as many rows of each client as the nodes have"
        )
    worker = Worker(federation, place)
    told = answer(worker, client, body)
    worker.close()
    if isinstance(told, Reply):
        return {"kind": "reply", "reason": ""}, told.body
    return {"kind": "failure", "reason": told.reason}, b""


def _place(node: Mapping[str, Any], fields: Mapping[str, Any], task: str) -> Place:
    """A folder of the run's own, also among runs of one name."""
    home = Path(os.environ.get("FLWR_HOME", Path.home() / ".flwr")) / "privlm"
    begun = hashlib.sha256(fields["begun"].encode()).hexdigest()[:8]
    folder = Path(str(node.get("folder", home))) / task / f"{fields['run']}.{begun}"
    folder.mkdir(parents=True, exist_ok=True)
    return Place(fields["stage"], folder / "stages" / fields["stage"] / CLIENTS, folder)


def _with_data_of(config: dict[str, Any], node: Mapping[str, Any]) -> dict[str, Any]:
    if "data-path" not in node:
        return config
    if not config.get("data"):
        raise UsageError("--node-config data-path: the task reads no file of rows")
    return config | {"data": config["data"] | {"path": str(node["data-path"])}}
