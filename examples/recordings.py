# %% [markdown]
# # First steps with your own recordings
#
# This example embeds a folder of recordings from the field, lists the failures, pools the windows to one vector per
# recording, searches for windows that sound like a given window, and writes a page. Run it as a script
# (`python examples/recordings.py FOLDER OUTPUT`) or cell by cell, in any editor that supports `# %%`.

# %%
import os
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from embedding.listing.start_times import recorded_at
from jobs.embed import main as embed
from jobs.pool import main as pool
from jobs.report import main as report
from jobs.search import main as search

recordings, output = Path(sys.argv[1]), Path(sys.argv[2])
# `random` needs no download; its vectors carry no meaning. Without `--checkpoint` the model has its own weights.
checkpoint = os.environ.get("CHECKPOINT", "random")

# %% [markdown]
# ## Embed
# Recordings may have any of twelve dozen formats, any sample rate and any length. A recording that cannot be read is a
# row in `failures/`; all others are embedded.

# %%
code = embed(
    [
        *("--input", str(recordings), "--output", str(output), "--model", "esp_aves2_effnetb0_all"),
        *("--checkpoint", checkpoint, "--window-s", "1", "--max-failure-rate", "0.5"),
    ]
)
assert code == 0

# %%
if (output / "failures").exists():
    for row in pq.read_table(output / "failures").to_pylist():
        print(f"failed: {Path(row['file']).name}: {row['kind']}, {row['message']}")

# %% [markdown]
# ## Start times
# AudioMoths and Song Meters write the start time into the file name. Other names have no start time.

# %%
windows = pq.read_table(output / "embeddings")
for file in sorted(set(windows["file"].to_pylist())):
    began = recorded_at(file)
    print(f"{Path(file).name}: {began:%Y-%m-%d %H:%M:%S}" if began else f"{Path(file).name}: no time in its name")

# %% [markdown]
# ## One vector per recording
# The vector is the mean of the windows, followed by their standard deviation.

# %%
assert pool([str(output), "--pooling", "mean+std"]) == 0
pooled = pq.read_table(output / "recordings" / "mean+std")
print(f"{len(pooled)} recordings, vectors of {len(pooled['embedding'][0])} numbers")

# %% [markdown]
# ## Search
# Find the five windows nearest to the window at 1.5 s of the first recording.

# %%
file = sorted(set(windows["file"].to_pylist()))[0]
assert search([str(output), "--like", file, "--at", "1.5", "--k", "5"]) == 0

# %% [markdown]
# ## Page
# The page is one file that needs no network. It shows counts, times of recording, norms, and two maps
# (UMAP and PCA) whose points can be clicked.

# %%
assert report([str(output), "--html", str(output / "page.html")]) == 0
norms = np.linalg.norm(np.stack(windows["embedding"].to_numpy()), axis=1)
print(f"norms {norms.min():.3g} to {norms.max():.3g} · {output / 'page.html'}")
