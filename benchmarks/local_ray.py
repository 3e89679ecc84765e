"""A Ray of its own on this machine, with as many CPUs and GPUs as it is told to have."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ray_of(n_cpus: int, n_gpus: int = 0, *, store_bytes: int = 1 << 30) -> Iterator[str]:
    """Start a Ray, and end it with the block; GPUs need not exist.

    Args:
        n_cpus: CPUs that it hands out.
        n_gpus: GPUs that it hands out.
        store_bytes: size of its object store, of which Ray takes 75 MiB at least.

    Returns:
        Its address, for RAY_ADDRESS.
    """
    program = (
        "import ray, sys\n"
        f"ray.init(address='local', num_cpus={n_cpus}, num_gpus={n_gpus}, include_dashboard=False, "
        f"object_store_memory={store_bytes})\n"
        "print('address', ray.get_runtime_context().gcs_address, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ
        # Who comes to it has no token. Idle workers stay, as in a Ray of ours (embedding/ray_runtime/session.py).
        | {"RAY_AUTH_MODE": "disabled", "RAY_num_workers_soft_limit": str(8 * n_cpus)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield next(line.split()[1] for line in process.stdout if line.startswith("address"))
        process.communicate()  # closes its stdin: it ends, and its Ray with it
