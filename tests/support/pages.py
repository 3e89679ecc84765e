"""Outputs with a page to be made of them, and the browser that it is opened in."""

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


def output(root: Path | str, recordings: dict[str, np.ndarray], failures: list[Failure], *inputs: str) -> Store:
    """As a run over ``inputs`` would have left it."""
    store = Store(str(root), json.dumps(SETTINGS))
    if recordings:
        write_output(store.root, recordings, SETTINGS, n_shards=1)
    store.write_failures(failures, "run")
    n, n_failed = len(recordings), len(failures)
    store.write_json("run.json", {"settings": SETTINGS, "options": {"input": list(inputs)}})
    books = {"listed": n + n_failed, "already_done": 0, "embedded": n, "failed": n_failed, "balanced": True}
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
    store.write_json("report.json", {"state": "complete", "recordings": books, "output": totals, "runs": [run]})
    return store


@dataclass
class Opened:
    """A page in a browser, and what it did that it should not."""

    page: Page
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def evaluate(self, expression: str) -> Any:
        return self.page.evaluate(expression)


def opened(context: BrowserContext, html: Path) -> Opened:
    found = Opened(context.new_page())
    found.page.on("console", lambda message: found.errors.append(message.text) if message.type != "log" else None)
    found.page.on("pageerror", lambda error: found.errors.append(str(error)))
    found.page.on("request", lambda request: found.requests.append(request.url))
    context.route(lambda url: not url.startswith("file:"), lambda route: route.abort())
    found.page.goto(html.as_uri())
    found.page.locator("html[data-drawn]").wait_for(state="attached")
    return found
