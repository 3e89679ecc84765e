"""Ray clusters of several nodes on this machine, which come and go while a test looks on."""

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

# The nodes are children of this program, and end with it.
PROGRAM = """
import json, sys, tempfile
from ray.cluster_utils import Cluster

# Ports are free ones: another Ray of this machine may have the usual ones, and then no agent starts jobs.
head = {"num_cpus": 0, "object_store_memory": 256 << 20, "dashboard_agent_listen_port": 0} | json.loads(sys.argv[1])
cluster = Cluster()
cluster.add_node(wait=False, **head)
nodes = {}
print(json.dumps([cluster.address, cluster.head_node.webui_url]), flush=True)
for line in sys.stdin:
    verb, argument = json.loads(line)
    if verb == "add":
        # A temporary directory of its own, as on a machine of its own: else each node unpacks a job's working directory
        # over that of the others.
        folder = tempfile.mkdtemp(prefix="node-", dir=sys.argv[2])
        node = cluster.add_node(wait=False, object_store_memory=512 << 20, temp_dir=folder, **argument)
        cluster.wait_for_nodes(timeout=120)  # on a busy machine it may take longer than Ray's own 30 s
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
class Nodes:
    """A running cluster. ``ids`` are those of its nodes other than the head, the oldest first."""

    address: str
    dashboard: str  # host:port, if it has one
    _stdin: IO[str]
    _stdout: IO[str]
    ids: list[str] = field(default_factory=list)

    def add(self, num_cpus: int = 1, num_gpus: int = 0) -> str:
        """A node more; its id."""
        self.ids.append(self._ask("add", {"num_cpus": num_cpus, "num_gpus": num_gpus}))
        return self.ids[-1]

    def lose(self, node_id: str) -> None:
        """As when its machine is switched off."""
        self.ids.remove(node_id)
        self._ask("lose", node_id)

    def metrics_urls(self) -> list[str]:
        """The pages that Prometheus would scrape, one per node."""
        return [f"http://127.0.0.1:{port}/metrics" for port in self._ask("metrics", None)]

    def drain(self, node_id: str, deadline_s: int) -> None:
        """Announce what a spot machine is told: its end, in so many seconds."""
        command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", self.address]
        command += ["--node-id", node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"]
        command += ["--deadline-remaining-seconds", str(deadline_s)]
        subprocess.run(command, check=True, capture_output=True, env=environment(), timeout=60)

    def _ask(self, verb: str, argument: Any) -> Any:
        self._stdin.write(json.dumps([verb, argument]) + "\n")
        self._stdin.flush()
        return _answer(self._stdout)


def _answer(stdout: IO[str]) -> Any:
    """The next line that is ours: Ray prints, too."""
    for line in stdout:
        try:
            return json.loads(line)
        except json.JSONDecodeError:
            continue
    raise EOFError


@contextmanager
def cluster_of(
    *num_cpus: int, cwd: Path | None = None, env: dict[str, str] | None = None, **head: Any
) -> Iterator[Nodes]:
    """A head, without CPUs unless ``head`` (arguments of ``ray.init``) says otherwise, and nodes with so many CPUs.

    All of them are in the directory ``cwd``, with ``env`` in their environment.
    """
    # Not pytest's folder, whose name is too long for the sockets in it.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(head), folder],
            env=environment(
                RAY_metrics_report_interval_ms="1000",  # instead of ten seconds
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
            nodes = Nodes(address, dashboard or "", process.stdin, process.stdout)
            for n in num_cpus:
                nodes.add(n)
            yield nodes
        except EOFError as error:
            log.seek(0)
            raise RuntimeError(f"the cluster's program ended:\n{log.read()}") from error
        finally:
            process.stdin.close()
