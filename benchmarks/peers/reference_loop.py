"""Reference loop: plain avex, one window at a time, with torch's default number of threads.

``python benchmarks/peers/reference_loop.py --input FOLDER --output FILE.parquet --model M --checkpoint C``
"""

import numpy as np
import torch

from common import embed, load_model, make_parser, recordings, windows, write


def main() -> None:
    arguments = make_parser(__doc__).parse_args()
    model = load_model(arguments.model, arguments.checkpoint)
    files: list[str] = []
    indices: list[int] = []
    vectors = []
    for file in recordings(arguments.input):
        for index, window in enumerate(windows(file, arguments.window_s)):
            files.append(file)
            indices.append(index)
            vectors.append(embed(model, torch.from_numpy(window)[None], arguments.precision)[0].numpy())
    write(arguments.output, files, indices, np.stack(vectors))


if __name__ == "__main__":
    main()
