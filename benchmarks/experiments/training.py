"""The training of fashion_mnist_small: its loss, FID as it goes on, and what it draws at the end.

    uv run python -m benchmarks.experiments.training --data FOLDER

FID is of the average of relative width 0.10, kept every 500 steps.
"""

import shutil

import numpy as np

from benchmarks.experiments import common
from jaxdiff.config import Sampling
from jaxdiff.training.checkpoint_files import directory_of, steps_in
from jaxdiff.training.checkpoints import restore
from jaxdiff.training.snapshots import FOLDER

WINDOW = 500  # steps


def main() -> None:
    place = common.start("training", __doc__)
    run, ruler = common.base_run(place), common.Ruler(place, 2000)
    lines = common.read_metrics(run.workdir, "loss")
    windows = range(WINDOW, run.step + 1, WINDOW)
    loss = {end: float(np.mean([value for step, value in lines if end - WINDOW < step <= end])) for end in windows}
    single = [(float(step), value) for step, value in lines]
    means = [(float(step), value) for step, value in loss.items()]
    curves = {"a batch": single, f"mean of {WINDOW} steps": means}
    common.write_plot(place, curves, None, "training loss", "step", "loss.png")
    picture = f"step_{run.step:07}.png"
    shutil.copy(run.workdir / "samples" / picture, place.out / "samples.png")

    floor, widest = ruler.floor(), run.config.train.posthoc_ema[-1]
    rows: list[common.Row] = []
    for step in steps_in(directory_of(run.workdir, FOLDER)):
        average = restore(run.workdir, step, common.everywhere(), FOLDER).posthoc[
            str(len(run.config.train.posthoc_ema) - 1)
        ]
        kept = run._replace(params=average, step=step)
        rows.append(ruler.row(kept, Sampling(sampler="dpmpp_2m", steps=10), ema=widest, average="power function"))
        points = [(row["step"], row["values"]["fid"]) for row in rows]
        common.write_plot(place, {"FID": points}, floor["values"]["fid"], "FID of 2000 samples", "step", "fid.png")
        cells = [[row["step"], f"{loss[row['step']]:.4f}", *common.quality(row)] for row in rows]
        table = [["test images (floor)", "", *common.quality(floor)], *cells]
        common.write_table(
            place, ("step", "loss", *common.QUALITY), table, common.notes(rows[0], "dpmpp_2m, 10 steps.")
        )


if __name__ == "__main__":
    common.command(main)
