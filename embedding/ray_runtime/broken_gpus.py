"""GPUs that a run has given up: reported to the user, held so that no encoder gets them, and removed from placement."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from embedding.errors import RunError
from embedding.planning.placement import Placement, count_encoders_on_gpus
from embedding.ray_runtime.gpus import Gpu, hold_gpus
from embedding.ray_runtime.progress_actor import GPU_FAULTS

# Attempts to hold a GPU; other programs of the cluster may get it in between.
HOLD_TRIES = 3


class BrokenGpus:
    """The GPUs that a run has given up so far.

    Attributes:
        waiting: GPUs that are given up and not held yet, each with its last error.
    """

    def __init__(self, warn: Callable[[str], None], count_gpus: Callable[[], float]) -> None:
        """Start without broken GPUs.

        Args:
            warn: Prints a line for the user.
            count_gpus: Returns the number of GPUs of the cluster, including GPUs that are held.
        """
        self._warn, self._count_gpus = warn, count_gpus
        self._held: dict[Gpu, list[Any]] = {}
        self._tries: Counter[Gpu] = Counter()
        self.waiting: dict[Gpu, str] = {}

    def note(self, broken: Mapping[Gpu, str]) -> None:
        """Take note of all GPUs that the run has given up so far, each with its last error."""
        self.waiting = {gpu: error for gpu, error in broken.items() if gpu not in self._held}

    def hold(self, placement: Placement) -> Placement:
        """Hold the GPUs that are waiting; return the placement on the other GPUs.

        Raises:
            RunError: No GPU is left, or a broken GPU cannot be held.
        """
        for gpu, error in self.waiting.items():
            if not self._tries[gpu]:
                self._warn(f"{gpu} failed {GPU_FAULTS} times and is no longer used in this run: {error}")
            self._tries[gpu] += 1
        held = hold_gpus(self.waiting.keys())
        self._held |= held
        gpu, error = next(iter(self.waiting.items()))
        self.waiting = {}
        n_left = self._count_gpus() - sum(len(actors) for actors in self._held.values())
        n_actors = (
            placement.n_actors
            if placement.may_wait
            else min(placement.n_actors, count_encoders_on_gpus(n_left, placement.encoder_gpus))
        )
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
        return replace(placement, n_actors=n_actors)
