"""Outputs for which a page can be written, and pages that are open in a browser."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import BrowserContext, Page

from embedding.output.store import Store
from embedding.schema.failures import Failure
from tests.support.shards import write_output

DIM = 16
SETTINGS = {
    "model": "esp_aves2_effnetb0_all",
    "window_s": 5.0,
    "hop_s": 5.0,
    "pooling": "mean",
    "precision": "fp32",
    "checkpoint": "random",
    "embedding_size": DIM,
}


def write_finished_output(
    root: Path | str, recordings: dict[str, np.ndarray], failures: list[Failure], *inputs: str
) -> Store:
    """Write the output of a complete run over ``inputs``: shards, failures, run.json and report.json."""
    store = Store(str(root), json.dumps(SETTINGS))
    if recordings:
        write_output(store.root, recordings, SETTINGS, n_shards=1)
    store.write_failures(failures, "run")
    n, n_failed = len(recordings), len(failures)
    store.write_json("run.json", {"settings": SETTINGS, "options": {"input": list(inputs)}})
    balance = {"listed": n + n_failed, "already_done": 0, "embedded": n, "failed": n_failed, "balanced": True}
    run = {
        "run_id": "0000000000aa",
        "started": "2025-06-01T18:02:11.000+00:00",
        "host": "laptop",
        "state": "complete",
        "wall_s": 75.0,
        "recordings_finished": n,
        "recordings_failed": n_failed,
        "windows_written": sum(map(len, recordings.values())),
        "times_real_time": 41.5,
    }
    totals = store.read().totals()
    store.write_json("report.json", {"state": "complete", "recordings": balance, "output": totals, "runs": [run]})
    return store


@dataclass
class OpenPage:
    """A page that is open in a browser, with its errors and the addresses of its requests."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def evaluate(self, expression: str) -> Any:
        return self.page.evaluate(expression)


def open_page(context: BrowserContext, html: Path) -> OpenPage:
    """Open a page, and wait until its figures are drawn; requests other than for files are refused."""
    opened = OpenPage(context.new_page())
    opened.page.on("console", lambda message: opened.errors.append(message.text) if message.type != "log" else None)
    opened.page.on("pageerror", lambda error: opened.errors.append(str(error)))
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    context.route(lambda url: not url.startswith("file:"), lambda route: route.abort())
    opened.page.goto(html.as_uri())
    opened.page.locator("html[data-drawn]").wait_for(state="attached")
    return opened
