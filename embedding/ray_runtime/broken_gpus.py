"""GPUs that a run has given up: told to the user, held where no encoder gets them, and left out of the plan."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from embedding.errors import RunError
from embedding.planning.placement import Placement, encoders_on
from embedding.ray_runtime.gpus import Gpu, set_aside
from embedding.ray_runtime.progress_actor import GPU_FAULTS

# Attempts to hold a GPU that other programs of the cluster get in between.
HOLD_TRIES = 3


class BrokenGpus:
    """The GPUs that a run has given up so far.

    Attributes:
        waiting: GPUs that are given up and not yet held, each with its last error.
    """

    def __init__(self, warn: Callable[[str], None], count_gpus: Callable[[], float]) -> None:
        """Begin with none.

        Args:
            warn: prints a line for the user.
            count_gpus: returns the number of GPUs of the cluster, held ones included.
        """
        self._warn, self._count_gpus = warn, count_gpus
        self._held: dict[Gpu, list[Any]] = {}
        self._tries: Counter[Gpu] = Counter()
        self.waiting: dict[Gpu, str] = {}

    def note(self, broken: Mapping[Gpu, str]) -> None:
        """Take note of all GPUs that the run has given up, each with its last error."""
        self.waiting = {gpu: error for gpu, error in broken.items() if gpu not in self._held}

    def set_aside(self, plan: Placement) -> Placement:
        """Hold the GPUs that are waiting; return the plan for those that are left.

        Raises:
            RunError: no GPU is left, or a broken one cannot be held.
        """
        for gpu, error in self.waiting.items():
            if not self._tries[gpu]:
                self._warn(f"{gpu} failed {GPU_FAULTS} times and is not used any more in this run: {error}")
            self._tries[gpu] += 1
        held = set_aside(self.waiting.keys())
        self._held |= held
        gpu, error = next(iter(self.waiting.items()))
        self.waiting = {}
        n_left = self._count_gpus() - sum(len(actors) for actors in self._held.values())
        n_actors = plan.n_actors if plan.may_wait else min(plan.n_actors, encoders_on(n_left, plan.encoder_gpus))
        if not n_actors:
            raise RunError(
                f"no GPU is left to encode on: {gpu} failed {GPU_FAULTS} times: {error}; what is stored stays valid, "
                "run the same command again to go on"
            )
        if stubborn := [gpu for gpu in self._tries if self._tries[gpu] >= HOLD_TRIES and gpu not in self._held]:
            raise RunError(
                f"{stubborn[0]} fails again and again, and could not be kept from this run's encoders, as other "
                "programs use the cluster: take its machine out of the cluster, and run the same command again"
            )
        return replace(plan, n_actors=n_actors)
