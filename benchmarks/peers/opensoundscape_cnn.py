"""opensoundscape's ``CNN.embed`` with torchvision's EfficientNet-B0, the architecture of avex's EfficientNet.

``PYTHON benchmarks/peers/opensoundscape_cnn.py --input FOLDER --output FILE.parquet --model … --checkpoint …``

The vectors differ and are not compared: opensoundscape computes its own spectrograms (224 × 224, in three channels),
and the weights are random, because nothing is downloaded. The measured quantity is the work per window. ``--model``,
``--checkpoint`` and ``--precision`` are accepted, but not used. opensoundscape is not part of this project's
environment; PYTHON belongs to an environment of its own:

    python -m venv /tmp/opensoundscape
    /tmp/opensoundscape/bin/pip install opensoundscape pyarrow torch==2.11.* torchvision==0.26.* torchaudio==2.11.*
    python benchmarks/against_peers.py --opensoundscape /tmp/opensoundscape/bin/python

(opensoundscape 0.13.2, Python 3.11.)
"""

from opensoundscape import CNN  # type: ignore[import-not-found]
from opensoundscape.ml.cnn_architectures import efficientnet_b0  # type: ignore[import-not-found]

from common import BATCH_SIZE, RATE_HZ, make_parser, n_cores, recordings


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--workers", type=int, default=max(1, n_cores() // 2))
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    arguments = parser.parse_args()
    architecture = efficientnet_b0(num_classes=1, weights=None, num_channels=3)
    model = CNN(architecture, classes=["any"], sample_duration=arguments.window_s, sample_rate=RATE_HZ)
    embeddings = model.embed(
        recordings(arguments.input),
        batch_size=arguments.batch_size,
        num_workers=arguments.workers,
        progress_bar=False,
    )
    embeddings.columns = [str(column) for column in embeddings.columns]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    embeddings.to_parquet(arguments.output)


if __name__ == "__main__":
    main()
