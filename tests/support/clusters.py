"""Ray clusters of several nodes on this machine; a test adds and removes nodes."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.support.commands import environment

# The nodes are child processes of this program, and end with it.
PROGRAM = """
import json, sys, tempfile
from ray.cluster_utils import Cluster

# A free port: another Ray on this machine may use the default port, and then no agent starts jobs.
head = {"num_cpus": 0, "object_store_memory": 256 << 20, "dashboard_agent_listen_port": 0} | json.loads(sys.argv[1])
cluster = Cluster()
cluster.add_node(wait=False, **head)
nodes = {}
print(json.dumps([cluster.address, cluster.head_node.webui_url]), flush=True)
for line in sys.stdin:
    verb, argument = json.loads(line)
    if verb == "add":
        # Each node has a temporary directory, as on a separate machine: in a common directory each node would unpack a
        # job's working directory over the directories of the other nodes.
        folder = tempfile.mkdtemp(prefix="node-", dir=sys.argv[2])
        node = cluster.add_node(wait=False, object_store_memory=512 << 20, temp_dir=folder, **argument)
        cluster.wait_for_nodes(timeout=120)  # Ray's default, 30 s, is too short for a busy machine
        nodes[node.node_id] = node
        print(json.dumps(node.node_id), flush=True)
    elif verb == "metrics":
        print(json.dumps([node.metrics_export_port for node in cluster.list_all_nodes()]), flush=True)
    else:
        cluster.remove_node(nodes.pop(argument), allow_graceful=False)
        print(json.dumps(None), flush=True)
cluster.shutdown()
"""


@dataclass
class LocalCluster:
    """A running cluster.

    Attributes:
        address: Address of the head.
        dashboard: Host and port of the dashboard; empty without a dashboard.
        ids: Ids of the nodes except the head, the oldest first.
    """

    address: str
    dashboard: str
    _stdin: IO[str]
    _stdout: IO[str]
    ids: list[str] = field(default_factory=list)

    def add(self, num_cpus: int = 1, num_gpus: int = 0) -> str:
        """Add a node, and return its id."""
        self.ids.append(self._call("add", {"num_cpus": num_cpus, "num_gpus": num_gpus}))
        return self.ids[-1]

    def lose(self, node_id: str) -> None:
        """End a node as if its machine was switched off."""
        self.ids.remove(node_id)
        self._call("lose", node_id)

    def metrics_urls(self) -> list[str]:
        """Return the pages that Prometheus would read, one per node."""
        return [f"http://127.0.0.1:{port}/metrics" for port in self._call("metrics", None)]

    def drain(self, node_id: str, deadline_s: int) -> None:
        """Announce the end of a node in ``deadline_s`` seconds, as AWS announces the end of a spot machine."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", self.address]
        command += ["--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"]
        command += ["--deadline-remaining-seconds", str(deadline_s)]
        subprocess.run(command, check=True, capture_output=True, env=environment(), timeout=60)

    def _call(self, verb: str, argument: Any) -> Any:
        self._stdin.write(json.dumps([verb, argument]) + "\n")
        self._stdin.flush()
        return _answer(self._stdout)


def _answer(stdout: IO[str]) -> Any:
    """Return the next answer of the program; skip the lines that Ray prints."""
    for line in stdout:
        try:
            return json.loads(line)
        except json.JSONDecodeError:
            continue
    raise EOFError


@contextmanager
def local_cluster(
    *num_cpus: int, cwd: Path | None = None, env: dict[str, str] | None = None, **head: Any
) -> Iterator[LocalCluster]:
    """Run a cluster.

    Args:
        num_cpus: Number of CPUs of each node.
        cwd: Working directory of all nodes.
        env: Further variables in the environment of all nodes.
        head: Arguments of ``ray.init`` for the head, which has no CPUs by default.
    """
    # A folder of pytest has a name that is too long for the sockets in it.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(head), folder],
            env=environment(
                RAY_metrics_report_interval_ms="1000",  # Ray's default is ten seconds
                RAY_JOB_STOP_WAIT_TIME_S="30",  # as in the image
                **env or {},
            ),
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            address, dashboard = _answer(process.stdout)
            cluster = LocalCluster(address, dashboard or "", process.stdin, process.stdout)
            for n in num_cpus:
                cluster.add(n)
            yield cluster
        except EOFError as error:
            log.seek(0)
            raise RuntimeError(f"the cluster's program ended:\n{log.read()}") from error
        finally:
            process.stdin.close()
