# The image of every cluster node: this project and the packages of its lock file, nothing else.
#   docker build -t IMAGE .
# torch contains its CUDA libraries; the node has to have the driver, 580 or newer. Size: some 9 GB, most of it CUDA.
#
# The platform is amd64 on every build machine, because the nodes of cluster.yaml and deploy/rayjob.yaml are amd64. A laptop
# with an ARM processor would otherwise build an image that no node can start ("exec format error").
FROM --platform=linux/amd64 python:3.11-slim-bookworm

# openssh-client: the head starts workers by `ssh` from inside this container.
# rsync: the cluster launcher copies its configuration and the token into the container with rsync.
# gcc, libc6-dev: Triton, which torch.compile uses on GPUs, compiles a launcher for each kernel when the kernel first runs.
# wget: KubeRay's probes. procps: `ps` and `top` for an operator who logs in.
# tests/deploy/test_image.py compares this list with the commands that Ray runs in the container.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openssh-client rsync gcc libc6-dev wget procps \
    && rm -rf /var/lib/apt/lists/*

# The packages come first, because they change rarely: nodes keep this layer.
WORKDIR /opt/avex-batch
COPY requirements.lock ./
RUN pip install --no-cache-dir --require-hashes -r requirements.lock

COPY pyproject.toml README.md LICENSE ./
COPY embedding embedding
COPY jobs jobs
RUN pip install --no-cache-dir --no-deps --no-build-isolation . \
    && python -c "import embedding.pipeline, jobs.embed, jobs.report"

# The user is not root: recordings are untrusted files, and their decoder is written in C. Ray looks for its token in ~/.ray.
# The folder is created here, because Docker would create a missing folder for the mounted token with root as its owner.
RUN useradd --create-home --uid 1000 ray \
    && install --directory --mode=700 --owner=ray --group=ray /home/ray/.ray
USER ray
# Ray's launcher reads HOME from the image, not from the container, to expand the `~` of file_mounts; without HOME the
# launcher mounts them below /root.
ENV HOME=/home/ray
WORKDIR /home/ray
# The first variable tells NVIDIA's container runtime which GPUs the container may use (without the variable: none). The
# second variable selects the libraries of the driver.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# A stopped job has 30 s to finish work in flight; Ray's default is three seconds. Nodes keep their idle workers, because
# otherwise each write would start a process: embedding/ray_runtime/session.py has the figures (128 are 8 for each of 16
# cores).
# With RAY_AUTH_MODE=token a node without the cluster's token does not start, and a client without the token is refused.
# Without it, everybody who reaches Ray's ports could run programs with the rights of the nodes.
ENV RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token RAY_JOB_STOP_WAIT_TIME_S=30 RAY_num_workers_soft_limit=128
