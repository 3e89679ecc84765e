"""Pipeline of Ray Data's documentation: ``read_audio`` → ``flat_map`` to windows → ``map_batches`` with an actor class.

``python benchmarks/peers/ray_documentation.py --input FOLDER --output FOLDER.parquet --model M --checkpoint C``

The pipeline follows Ray's guides (batch inference: a class with the model in ``__init__``; audio: ``read_audio``), with
what a user learns in the first days. Paths have to be requested. An actor has one thread by default. As many actors as
CPUs leave no CPU for reading and writing, and the job stops without a message; so the actors together reserve half of
the CPUs. Without these findings the options are ``--actors 1 --actor-cpus 1 --batch-size 64`` on two CPUs (64 is a
usual batch size for a GPU).
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import ray

from common import BATCH_SIZE, cut, embed, load_model, make_parser, n_cores


class Embedder:
    def __init__(self, model: str, checkpoint: Path, precision: str, n_threads: int) -> None:
        import torch

        torch.set_num_threads(n_threads)
        self.model = load_model(model, checkpoint)
        self.precision = precision

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        import torch

        vectors = embed(self.model, torch.tensor(batch.pop("window")), self.precision)
        return batch | {"embedding": vectors.numpy()}


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--actors", type=int, default=n_cores())
    parser.add_argument(
        "--actor-cpus", type=float, help="CPUs per actor (default: half of the machine for all actors together)"
    )
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    run(parser.parse_args())


def run(arguments: argparse.Namespace) -> None:
    window_s = arguments.window_s

    def to_windows(row: dict[str, Any]) -> list[dict[str, Any]]:
        windows = cut(row["amplitude"].mean(axis=0), row["sample_rate"], window_s)
        return [{"file": row["path"], "window_index": i, "window": window} for i, window in enumerate(windows)]

    (
        ray.data.read_audio(str(arguments.input), include_paths=True)
        .flat_map(to_windows)
        .map_batches(
            Embedder,
            fn_constructor_args=(
                arguments.model,
                arguments.checkpoint,
                arguments.precision,
                n_cores() // arguments.actors,
            ),
            batch_size=arguments.batch_size,
            concurrency=arguments.actors,
            num_cpus=arguments.actor_cpus or 0.5 * n_cores() / arguments.actors,
        )
        .write_parquet(str(arguments.output))
    )


if __name__ == "__main__":
    main()
