"""(f) The width of the parameters' average, chosen after training, and the guidance scale against FID and recall.

python -m benchmarks.experiments.averages_guidance --data FOLDER
"""

from benchmarks.experiments import common
from jaxdiff.config import Sampling
from jaxdiff.training.checkpoints import restore
from jaxdiff.training.snapshots import reconstruct

WIDTHS, SCALES = (0.02, 0.05, 0.10, 0.15, 0.20, 0.25), (0.0, 0.5, 1.0, 1.5, 2.0, 4.0)


def main() -> None:
    place = common.start("averages_guidance", __doc__)
    run, ruler = common.base_run(place), common.Ruler(place, 2000)
    sampling = Sampling(sampler="dpmpp_2m", steps=10)
    floor, state = ruler.floor(), restore(run.workdir)
    lines = [["test images (floor)", "", "", *common.quality(floor)]]
    averages, guided = [], []
    plain = ruler.row(run._replace(params=state.params), sampling, ema=0.0)
    lines.append(["none (the last parameters)", "", 1, *common.quality(plain)])
    for width in WIDTHS:
        params = reconstruct(run.workdir, state, run.config.train.posthoc_ema, width)
        row = ruler.row(run._replace(params=params), sampling, ema=width, average="power function")
        averages.append((width, row["values"]["fid"]))
        lines.append(["power function, post hoc", width, 1, *common.quality(row)])
    for scale in SCALES:
        row = ruler.row(run, Sampling(sampler="dpmpp_2m", steps=10, guidance=scale))
        guided.append((scale, row["values"]["fid"]))
        lines.append([f"exponential, {run.config.train.ema_decay}", "", scale, *common.quality(row)])
    head = ("average", "relative width", "guidance", *common.QUALITY)
    extra = f"dpmpp_2m, 10 steps; one training, step {run.step}."
    common.write_table(place, head, lines, common.notes(plain, extra))
    points = {"average, by relative width": averages, "guidance, by scale": [p for p in guided if p[0] > 0]}
    common.write_plot(place, points, floor["values"]["fid"], "FID of 2000 samples", "relative width, or guidance scale")


if __name__ == "__main__":
    main()
