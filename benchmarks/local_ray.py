"""Local Ray with a given number of CPUs and GPUs."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ray_of(n_cpus: int, n_gpus: int = 0, *, store_bytes: int = 1 << 30) -> Iterator[str]:
    """Start a Ray that ends with the block.

    Args:
        n_cpus: Number of CPUs that Ray assigns.
        n_gpus: Number of GPUs that Ray assigns; they need not exist.
        store_bytes: Size of the object store; Ray requires at least 75 MiB.

    Yields:
        The address, for RAY_ADDRESS.
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
        # Clients have no token. Idle workers are kept, as in embedding/ray_runtime/session.py.
        | {"RAY_AUTH_MODE": "disabled", "RAY_num_workers_soft_limit": str(8 * n_cpus)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        yield next(line.split()[1] for line in process.stdout if line.startswith("address"))
        process.communicate()  # closes stdin, which ends the process and its Ray
