# %% [markdown]
# # A look at recordings of one's own
#
# A folder of recordings, as they come from the field: embed them, see what failed, pool them to one vector per
# recording, find what sounds like a moment one has heard, and draw a page of it all. Run it as a script
# (`python examples/recordings.py FOLDER OUTPUT`) or cell by cell, in any editor that knows `# %%`.

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
# Without a download `random` shows how everything works, and nothing about sounds. Leave it out for the model's own.
checkpoint = os.environ.get("CHECKPOINT", "random")

# %% [markdown]
# ## Embed
# Twelve dozen formats, any sample rate, any length. What cannot be read is a row in `failures/`, and the rest goes on.

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
# ## When
# The time stands in the name, as AudioMoths and Song Meters write it; of other names nothing is guessed.

# %%
windows = pq.read_table(output / "embeddings")
for file in sorted(set(windows["file"].to_pylist())):
    began = recorded_at(file)
    print(f"{Path(file).name}: {began:%Y-%m-%d %H:%M:%S}" if began else f"{Path(file).name}: no time in its name")

# %% [markdown]
# ## One vector per recording
# Mean and spread of its windows, one behind the other.

# %%
assert pool([str(output), "--pooling", "mean+std"]) == 0
pooled = pq.read_table(output / "recordings" / "mean+std")
print(f"{len(pooled)} recordings, vectors of {len(pooled['embedding'][0])} numbers")

# %% [markdown]
# ## What sounds like this?
# The second second of the first recording, and the five windows nearest to it.

# %%
file = sorted(set(windows["file"].to_pylist()))[0]
assert search([str(output), "--like", file, "--at", "1.5", "--k", "5"]) == 0

# %% [markdown]
# ## A page of it all
# One file, without a network: the books, when recordings were made, norms, UMAP and PCA to click on.

# %%
assert report([str(output), "--html", str(output / "page.html")]) == 0
norms = np.linalg.norm(np.stack(windows["embedding"].to_numpy()), axis=1)
print(f"norms {norms.min():.3g} to {norms.max():.3g} · {output / 'page.html'}")
