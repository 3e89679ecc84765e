"""Time and cost of archives by their hours of audio, for the job and for the reference loop.

``python benchmarks/growth.py --picture docs/growth.png``

End to end, ten minutes to 32 h of 48 kHz FLAC in files of a minute, EfficientNet-B0. Wall and CPU time per hour should
fall (the start-up is paid once) and then stay constant; memory should not grow.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from against_peers import CASES, PEERS, REFERENCE, peer_command
from archive import Archive, add_cache_option
from harness import DRIVER, STORE, TOTAL, WORKERS, measure_all
from job import Workspace, last_run
from tables import Spread, add_options, markdown, page, publish, ratios
from weights import EFFICIENTNET

HOURS = (1 / 6, 1.0, 4.0, 16.0, 32.0)
SMALL_HOURS = (0.1, 0.5)
CASE = CASES["effnet-8h"]


def draw(path: Path, wall_s: Mapping[str, Mapping[float, Spread]]) -> None:
    """Draw seconds over hours of audio, both axes logarithmic; ``wall_s`` is by program and hours."""
    import plotly.graph_objects as go

    figure = go.Figure(layout={"template": "plotly_white", "font": {"size": 16}, "legend": {"x": 0.03, "y": 0.97}})
    for name, by_hours in wall_s.items():
        seconds = [spread.median for spread in by_hours.values()]
        figure.add_scatter(x=list(by_hours), y=seconds, name=name, mode="lines+markers", marker={"size": 9})
    names = {1 / 6: "10 min"} | {h: f"{h:g} h" for h in HOURS[1:]}
    figure.update_xaxes(type="log", title="audio", tickvals=list(names), ticktext=list(names.values()))
    figure.update_yaxes(type="log", title="seconds from command to prompt", dtick="D1")
    path.write_bytes(figure.to_image("png", width=900, height=560, scale=2))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, nargs="+", default=HOURS)
    parser.add_argument("--picture", type=Path, help="a PNG file with the times (needs plotly, kaleido and a browser)")
    add_options(parser, rounds=3)
    add_cache_option(parser)
    arguments = parser.parse_args()
    workspace = Workspace.of(arguments, "growth")
    hours = SMALL_HOURS if arguments.small else arguments.hours
    whole = Archive.of_hours(max(hours))
    jobs, loops = {}, {}
    for h in hours:
        folder = workspace.recordings(whole, Archive.of_hours(h).n_files)
        jobs[h] = workspace.embed_command(f"{h:g} h", folder, EFFICIENTNET)
        loops[h] = peer_command(f"{REFERENCE}, {h:g} h", PEERS[REFERENCE], folder, CASE, workspace)
    results = measure_all([*jobs.values(), *loops.values()], 1 if arguments.small else arguments.rounds)
    rows = []
    wall_s: dict[str, dict[float, Spread]] = {REFERENCE: {}, "this job": {}}
    for h, command in jobs.items():
        assert command.output is not None
        last_run(command.output)
        runs, of_loop = results[command.name], [run.wall_s for run in results[loops[h].name]]
        own = [run.wall_s for run in runs]
        wall_s["this job"][h], wall_s[REFERENCE][h] = Spread.of(own), Spread.of(of_loop)
        rows.append(
            [
                f"{h:.3g}",
                Spread.of(own).text(),
                Spread.of([run.wall_s / h for run in runs]).text(),
                Spread.of([run.cpu_s / h for run in runs]).text(),
                Spread.of(of_loop).text(),
                ratios(of_loop, own).text(".2f"),
                *(f"{max(run.peak_mb.get(role, 0) for run in runs):,.0f}" for role in (DRIVER, WORKERS, STORE, TOTAL)),
            ]
        )
    columns = ["hours", "wall s", "wall s per hour", "CPU s per hour", f"{REFERENCE}: wall s", "times as fast"]
    table = markdown([*columns, *(f"peak MB: {role}" for role in (DRIVER, WORKERS, STORE, TOTAL))], rows)
    if arguments.picture:
        draw(arguments.picture, wall_s)
    publish("growth", page(__doc__, table, [f"{EFFICIENTNET}, fp32."]), save=arguments.save)
    return 0


if __name__ == "__main__":
    sys.exit(main())
