"""PyTorch DataLoader: its workers decode recordings and cut windows, the main process runs the model on batches.

``python benchmarks/peers/dataloader_loop.py --input FOLDER --output FILE.parquet --model M --checkpoint C``
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from common import BATCH_SIZE, embed, load_model, make_parser, n_cores, recordings, windows, write


class Windows(IterableDataset):
    """All windows of all recordings; each worker reads its share of the recordings."""

    def __init__(self, folder: Path, window_s: float) -> None:
        self.files = recordings(folder)
        self.window_s = window_s

    def __iter__(self) -> Iterator[tuple[str, int, NDArray[np.float32]]]:
        worker = get_worker_info()
        own_files = self.files[worker.id :: worker.num_workers] if worker else self.files
        for file in own_files:
            for index, window in enumerate(windows(file, self.window_s)):
                yield file, index, window


def main() -> None:
    parser = make_parser(__doc__)
    # Decoding is a few percent of the work, and the model needs the cores.
    parser.add_argument("--workers", type=int, default=max(1, n_cores() // 2))
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    arguments = parser.parse_args()
    model = load_model(arguments.model, arguments.checkpoint)
    dataset = Windows(arguments.input, arguments.window_s)
    files: list[str] = []
    indices: list[int] = []
    vectors = []
    for names, numbers, batch in DataLoader(dataset, arguments.batch_size, num_workers=arguments.workers):
        files.extend(names)
        indices.extend(numbers.tolist())
        vectors.append(embed(model, batch, arguments.precision).numpy())
    write(arguments.output, files, indices, np.concatenate(vectors))


if __name__ == "__main__":
    main()
