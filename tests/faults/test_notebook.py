"""A run in a notebook: the progress is shown in the cell, and interrupting the cell is like Ctrl-C in a terminal."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.support.commands import ROOT, environment
from tests.support.kills import N_WINDOWS, make_archive
from tests.support.models import EFFICIENTNET

# Starts a kernel, and interrupts its first cell once a shard is stored; prints what the cells gave.
NOTEBOOK = """
import json, os, sys
from pathlib import Path
from queue import Empty
from jupyter_client.manager import KernelManager

archive, output, model = sys.argv[1:]
options = dict(input=archive, output=output, model=model, checkpoint="random", window_s=1, shard_rows=640)
call = f"embedding.embed(**{options})"
manager = KernelManager()
manager.start_kernel(env=os.environ)
client = manager.client()
client.start_channels()
client.wait_for_ready(timeout=120)

def run(code, while_it_runs=lambda: None):
    shown, results = [], []
    request = client.execute(code)
    while True:
        while_it_runs()
        try:
            message = client.get_iopub_msg(timeout=0.2)
        except Empty:
            continue
        if message["parent_header"].get("msg_id") != request:
            continue
        content = message["content"]
        if message["msg_type"] == "stream":
            shown.append(content["text"])
        if message["msg_type"] == "display_data":  # lines of this program, and the bar
            shown.append(content["data"]["text/plain"])
        if message["msg_type"] == "execute_result":
            results.append(content["data"]["text/plain"])
        if message["msg_type"] == "status" and content["execution_state"] == "idle":
            break
    reply = client.get_shell_msg(timeout=60)["content"]
    return {"shown": "".join(shown), "results": results, "error": [reply.get("ename"), reply.get("evalue")]}

interrupted = []
def interrupt_once_a_shard_is_stored():
    if not interrupted and list(Path(output).glob("embeddings/*.parquet")):
        interrupted.append(True)
        manager.interrupt_kernel()

try:
    cells = [
        run("import embedding"),
        run(f"result = {call}", interrupt_once_a_shard_is_stored),
        run(f"result = {call}"),
        run("result.windows"),
    ]
finally:
    client.stop_channels()
    manager.shutdown_kernel(now=True)
print(json.dumps(cells))
"""


@pytest.mark.long  # it installs Jupyter
def test_interrupting_a_cell_stops_the_run_and_the_next_cell_goes_on(
    python_with: Callable[[str], Path], tmp_path: Path
) -> None:
    archive, output = make_archive(tmp_path / "archive"), tmp_path / "out"
    done = subprocess.run(
        [python_with("jupyter"), "-c", NOTEBOOK, archive, output, EFFICIENTNET],
        cwd=ROOT,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    imported, stopped, finished, windows = json.loads(done.stdout.splitlines()[-1])
    assert imported["error"] == [None, None]
    assert stopped["error"][0] == "Stopped"
    assert stopped["error"][1].startswith("stopped by Ctrl-C; what is stored stays valid")
    assert finished["error"] == [None, None]
    assert "loading the model into" in finished["shown"]
    for noise in ("core_worker", "IProgress", "ipywidgets"):
        assert noise not in stopped["shown"] + finished["shown"]
    assert windows["results"] == [str(N_WINDOWS)]
    rows = pq.read_table(output / "embeddings").to_pandas()
    assert len(rows) == N_WINDOWS
    assert not rows.duplicated(["file_id", "window_index"]).any()
