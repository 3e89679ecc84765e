"""Functions that run on all nodes of a cluster."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from embedding.output.inventory import map_in_threads
from embedding.ray_runtime.session import takes_tasks
from embedding.ray_runtime.worker_errors import raise_worker_errors

# Calls in one task: enough to spread the load evenly, and each task worth its some ms.
CALLS_PER_TASK = 64
# Errors of a task that is bound to a node, where the node is or was lost.
_LOST = (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError, ray.exceptions.WorkerCrashedError)


def map_on_nodes(function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Call ``function`` once per tuple of ``arguments``, on all nodes; yield the results in order."""

    def call(some_arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        return list(map_in_threads(function, some_arguments))

    task = ray.remote(call).options(num_cpus=0.5, scheduling_strategy="SPREAD")
    groups = [arguments[start : start + CALLS_PER_TASK] for start in range(0, len(arguments), CALLS_PER_TASK)]
    with raise_worker_errors():
        for results in [task.remote(group) for group in groups]:
            yield from ray.get(results)


def call_on_each_node(function: Callable[[], Any]) -> list[tuple[str, Any]]:
    """Call ``function`` on each node that takes tasks; return host names with results.

    A node that is lost meanwhile is missing from the result.
    """

    def call() -> Any:  # Ray takes no methods
        return function()

    task = ray.remote(num_cpus=0, max_retries=0)(call)
    nodes = [node for node in ray.nodes() if node["Alive"] and takes_tasks(node["Resources"])]
    answers = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in nodes
    ]
    found = []
    with raise_worker_errors():
        for node, answer in zip(nodes, answers, strict=True):
            with suppress(*_LOST):
                found.append((node["NodeManagerHostname"], ray.get(answer)))
    return found
