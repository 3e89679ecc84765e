# What every node of a cluster runs: this project and the packages of its lock file, nothing that is not in it.
#   docker build -t IMAGE .
# torch brings its CUDA libraries; the node brings the driver. Size: some 9 GB, most of it CUDA.
FROM python:3.11-slim-bookworm

# rsync: the cluster launcher copies its configuration into the container with it. wget: KubeRay's probes. procps:
# `ray stop` looks for its processes with it.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends rsync wget procps \
    && rm -rf /var/lib/apt/lists/*

# First the packages, which change rarely: a layer that nodes keep.
WORKDIR /opt/avex-batch
COPY requirements.lock ./
RUN pip install --no-cache-dir --require-hashes -r requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY embedding embedding
COPY jobs jobs
RUN pip install --no-cache-dir --no-deps --no-build-isolation . \
    && python -c "import embedding.pipeline, jobs.embed, jobs.report"

# Not root: recordings are other people's files, and their decoder is C.
RUN useradd --create-home --uid 1000 ray
USER ray
WORKDIR /home/ray
# A stopped job has half a minute to land what is in flight; Ray gives it three seconds. And nodes keep their idle
# workers, or each write would start a process: embedding/scheduling/cluster.py has the figures (128 are 8 for each of 16
# cores).
# Ray's token guards a machine's own Ray from its other users; here nodes are alone in their network.
ENV RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=disabled RAY_JOB_STOP_WAIT_TIME_S=30 RAY_num_workers_soft_limit=128
