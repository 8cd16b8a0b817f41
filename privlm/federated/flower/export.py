"""Writes a run as an app of Flower: its configuration, a ServerApp and a ClientApp of a line each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from privlm import files
from privlm.errors import UsageError
from privlm.federated.flower import installed
from privlm.identity import Roles

CONFIG, RUN = "config.yaml", "run.json"

PYPROJECT = """\
# An app of Flower that `privlm {task} export-app` has written: README.md says how it is run.
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "privlm-{name}"
version = "1.0.0"
description = "A federated run of PrivLM, task={task}"
license = "Apache-2.0"
dependencies = []  # privlm[flower] is in the environment of the SuperLink and of each SuperNode already

[tool.flwr.app]
publisher = "privlm"

[tool.flwr.app.components]
serverapp = "server_app:app"
clientapp = "client_app:app"

[tool.flwr.app.config]
folder = ""    # the ServerApp works here, relative paths begin here; "": the folder that the SuperLink was started in
force = false  # true: a run that is there is removed first, as by `privlm run --force`
"""

SERVER_APP = '''\
"""The server: takes the rounds of config.yaml and keeps the run directory."""

from pathlib import Path

from privlm.flower_launch import server_app

app = server_app(Path(__file__).parent)
'''

CLIENT_APP = '''\
"""The clients of one node, each with rows of its own."""

from pathlib import Path

from privlm.federated.flower.node import client_app

app = client_app(Path(__file__).parent)
'''

README = """\
# task={task}, by Flower

`privlm[flower]` (flwr {supported}) and the task's package are installed in the environment of the SuperLink and of
each SuperNode; `scripts/flower_env.sh` of PrivLM makes one. A SuperLink, and a SuperNode for each client:

    flower-superlink --insecure --host 127.0.0.1 --port 8000 --disable-runtime-dependency-installation
    flower-supernode --insecure --superlink 127.0.0.1:8000 --port 9094 --node-config "partition-id=0 num-partitions=2"
    flower-supernode --insecure --superlink 127.0.0.1:8000 --port 9095 --node-config "partition-id=1 num-partitions=2"

Between machines leave `--insecure` out: `--ssl-certfile`, `--ssl-keyfile` and `--ssl-ca-certfile` of the SuperLink and
`--root-certificates` of the nodes are TLS; `--enable-supernode-auth` and `--auth-supernode-private-key` let in the
nodes that you know. They are Flower's own, as is `--disable-runtime-dependency-installation`, without which each app
gets an environment of its own that has no privlm.

Name the SuperLink in `config.toml` of FLWR_HOME (default `~/.flwr`), and run this folder:

    [superlink.mine]
    address = "127.0.0.1:8000"
    insecure = true             # with TLS: root-certificates = "FILE"

    flwr run . mine --stream --run-config 'folder="/where/runs/are"'

The run directory is on the machine of the SuperLink, and holds what any run directory holds. The same command goes on
with a run that was stopped.

Settings of a node, in its --node-config:

| setting | says |
|--|--|
| `partition-id=0 num-partitions=2` | it serves each second client, from the first on |
| `client="NAME"` | it serves this client |
| `data-path="FILE"` | its own rows; without it, `data.path` of config.yaml on its own disk |
| `folder="DIR"` | where its clients keep their own; default `FLWR_HOME/privlm` |

The server reads a file of the clients, too (`data.path`), for their names and numbers of rows; it trains on none, and
computes losses of some to prove that the saved model loads. What clients keep (control variates, the state of an
optimizer) and their privacy ledgers lie in the node's folder: keep it for as long as the run goes on. With each reply
a client sends what its ledger has grown by, so that the server tells the price. A client that does not reply within
`federated.timeout_s` has failed in that round, and the round goes on with the others (`federated.min_clients`).
"""


def export_app(config: DictConfig, overrides: Sequence[str], roles: Roles, folder: Path) -> None:
    """Writes the app of a composed run into `folder`, which is made, or is empty.

    overrides: the words that gave the configuration. roles: of its keys in the hashes.

    Raises UsageError for a run that Flower cannot take, and for a folder that holds something.
    """
    if config.get("federated") is None or config.federated.engine != "flower":
        raise UsageError("an app of Flower is of a run with federated.engine=flower: give that word, too")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there and holds something: name a new folder")
    task, supported = config.task.name, installed.supported()
    texts = {
        "pyproject.toml": PYPROJECT.format(task=task, name=re.sub(r"[^a-z0-9]+", "-", task.lower())),
        "server_app.py": SERVER_APP,
        "client_app.py": CLIENT_APP,
        "README.md": README.format(task=task, supported=supported),
        CONFIG: OmegaConf.to_yaml(config, resolve=True),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        files.write_text(folder / name, text)
    files.write_json(folder / RUN, {"overrides": list(overrides), "roles": asdict(roles)})


def read_config(app: Path) -> dict[str, Any]:
    """The run's configuration, as plain values."""
    found: Any = OmegaConf.to_container(OmegaConf.load(app / CONFIG))
    return found


def read(app: Path) -> tuple[DictConfig, list[str], Roles]:
    """Configuration, words and roles of an exported app."""
    run = files.read_json(app / RUN)
    assert run is not None, f"{app} is no exported app"
    config: Any = OmegaConf.create(read_config(app))
    OmegaConf.set_readonly(config, True)
    return config, run["overrides"], Roles(**{name: tuple(keys) for name, keys in run["roles"].items()})
