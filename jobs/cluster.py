"""Find groups of alike windows: ``python -m jobs.cluster OUTPUT --clusters 50``.

Exit codes: 0 every recording with embeddings has its clusters; 1 some have not; 2 the request makes no sense.
"""

from collections.abc import Sequence

from embedding.cli.arguments import Parser, folder_name, number, output_parser
from embedding.cli.exit_codes import run_job
from embedding.cli.terminal import Terminal
from embedding.clustering import METHODS
from embedding.config import did_you_mean, name_at_layer
from embedding.errors import RequestError
from embedding.stopping import end_process

LARGEST_SEED = 2**32 - 1
MOST_CLUSTERS = 100_000


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = output_parser(
        "cluster",
        "Find groups of alike windows without labels, and give every window the number of its group, in "
        "OUTPUT/clusters/NAME/*.parquet. The same command again gives windows that were added since the same groups.",
    )
    parser.add_argument(
        "--method",
        default="kmeans",
        help="kmeans: as many clusters as you say, over all windows; hdbscan: dense regions of a sample, and windows "
        "far from all of them are in none (default: kmeans)",
    )
    parser.add_argument("--clusters", metavar="K", default="50", help="number of clusters of kmeans (default: 50)")
    parser.add_argument(
        "--least", metavar="N", default="25", help="least windows of a cluster in the sample, for hdbscan (default: 25)"
    )
    parser.add_argument("--name", help="name of the clusters (default: that of the method)")
    parser.add_argument("--seed", metavar="N", default="0", help="seed of the random numbers (default: 0)")
    parser.add_argument("--replace", action="store_true", help="find the clusters anew, also with other settings")
    return parser


def cluster(arguments: Sequence[str] | None) -> None:
    """Find clusters, and print their sizes.

    Raises:
        RequestError: The request makes no sense.
        RunError: Not every recording has its clusters, or the storage or the cluster of machines failed.
    """
    options = make_parser().parse_args(arguments)
    if options.method not in METHODS:
        raise RequestError(
            f"--method: {options.method!r} is not one of {', '.join(METHODS)}{did_you_mean(options.method, METHODS)}"
        )
    default = name_at_layer(options.method, options.layer)
    name = folder_name("--name", default if options.name is None else options.name)
    k = int(number("--clusters", options.clusters, int, 2, MOST_CLUSTERS))
    least = int(number("--least", options.least, int, 2, MOST_CLUSTERS))
    seed = int(number("--seed", options.seed, int, 0, LARGEST_SEED))
    from embedding import extras, storage  # here, because --help needs no numpy and pyarrow

    extras.load("sklearn", "report")
    from embedding.clustering.cluster import ClusterOptions
    from embedding.clustering.cluster import cluster as run_cluster

    root = storage.normalise(options.output, "OUTPUT")
    outcome = run_cluster(
        ClusterOptions(root, name, options.method, k, least, options.layer, seed, options.replace),
        Terminal.on_stdout(),
        verbose=options.verbose,
    )
    outcome.refuse_incomplete("cluster")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit code."""
    return run_job(lambda: cluster(arguments), output="OUTPUT")


if __name__ == "__main__":
    end_process(main())
