"""(f) The width of the parameters' average, chosen after training, and the guidance scale against FID and recall.

uv run python -m benchmarks.experiments.averages_guidance --data FOLDER
"""

import dataclasses
from typing import Any

from benchmarks.experiments import common
from jaxdiff.config import Sampling
from jaxdiff.training.checkpoints import restore
from jaxdiff.training.snapshots import reconstruct

WIDTHS, SCALES = (0.02, 0.05, 0.10, 0.15, 0.20, 0.25), (1.0, 2.0, 0.0, 1.5, 0.5, 4.0)


def main() -> None:
    place = common.start("averages_guidance", __doc__)
    run, ruler = common.base_run(place), common.Ruler(place, 1000)
    plain = Sampling(sampler="dpmpp_2m", steps=10)
    floor, state, rows = ruler.floor(), restore(run.workdir, sharding=common.everywhere()), []
    for scale in SCALES:
        row = ruler.row(run, dataclasses.replace(plain, guidance=scale))
        rows.append((f"exponential, {run.config.train.ema_decay}", "", row))
        write(place, floor, rows)
    rows.append(("none (the last parameters)", "", ruler.row(run._replace(params=state.params), plain, ema=0.0)))
    for width in WIDTHS if run.config.train.posthoc_ema else ():
        params = reconstruct(run.workdir, state, run.config.train.posthoc_ema, width, common.everywhere())
        row = ruler.row(run._replace(params=params), plain, ema=width, average="power function")
        rows.append(("power function, post hoc", width, row))
        write(place, floor, rows)


def write(place: common.Place, floor: common.Row, rows: list[tuple[str, Any, common.Row]]) -> None:
    """The table so far, and the plots of what there is."""
    head = ("average", "relative width", "guidance", "NFE", *common.QUALITY)
    lines = [["test images (floor)", "", "", "", *common.quality(floor)]]
    ordered = sorted(rows, key=lambda entry: (entry[0], entry[1] or 0.0, entry[2]["guidance"]))
    lines += [[name, width, row["guidance"], row["nfe"], *common.quality(row)] for name, width, row in ordered]
    extra = f"dpmpp_2m, 10 steps; one training, step {rows[0][2]['step']}."
    common.write_table(place, head, lines, common.notes(rows[0][2], extra))
    title, level = f"FID of {floor['n']} samples", floor["values"]["fid"]
    own = [row for _, width, row in ordered if not width and row["ema"]]
    guided = [(row["guidance"], row["values"]["fid"]) for row in own if row["guidance"] > 0]
    common.write_plot(place, {"FID": guided}, level, title, "guidance scale", "guidance.png")
    averages = [(width, row["values"]["fid"]) for _, width, row in rows if width]
    if averages:
        common.write_plot(place, {"FID": averages}, level, title, "relative width of the average", "averages.png")


if __name__ == "__main__":
    common.command(main)
