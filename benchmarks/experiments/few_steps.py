"""Few steps: the trained model distilled into a consistency model, and tuned to one by the images alone; 1, 2, 4 steps.

    uv run python -m benchmarks.experiments.few_steps --data FOLDER

For comparison, the trained model itself at as few steps.
"""

import dataclasses

from benchmarks.experiments import common
from jaxdiff.config import Sampling

KINDS = {"distilled": True, "tuned": False}  # with the teacher, or by the images alone
STEPS = (1, 2, 4)
PUBLISHED = common.load("fashion_mnist_consistency", common.ROOT / "configs")


def train(place: common.Place, name: str) -> common.Run:
    """The consistency model: begun with the base run's average, and trained as its config says."""
    start = common.base_run(place)
    config = common.change(
        start.config,
        objective=dataclasses.replace(PUBLISHED.objective, start=str(start.workdir), teacher=KINDS[name]),
        optimizer=PUBLISHED.optimizer,
        train=PUBLISHED.train,
        sampling=PUBLISHED.sampling,
    )
    return common.trained(place, name, config)


def finished(place: common.Place) -> list[tuple[str, common.Run]]:
    """Those of the models that are trained."""
    whole = [name for name in KINDS if (place.runs / name / "checkpoints" / str(PUBLISHED.train.steps)).exists()]
    return [(name, train(place, name)) for name in whole]


def main() -> None:
    place = common.start("few_steps", __doc__)
    teacher, ruler = common.base_run(place), common.Ruler(place, 2000)
    rows = [
        ("diffusion, dpmpp_2m", ruler.row(teacher, Sampling(sampler="dpmpp_2m", steps=steps)))
        for steps in (1, 2, 4, 20)
    ]
    floor = ruler.floor()
    for name in KINDS:
        model = train(place, name)
        rows += [(f"{name}, lcm", ruler.row(model, Sampling(sampler="lcm", steps=steps))) for steps in STEPS]
    head = ("model", "steps", *common.QUALITY, "images/s")
    lines = [["test images (floor)", "", *common.quality(floor), ""]]
    lines += [[name, row["steps"], *common.quality(row), f"{row['images_per_s']:.3g}"] for name, row in rows]
    budget = f"{PUBLISHED.train.steps} steps of {PUBLISHED.train.batch_size} images"
    extra = f"One training each, {budget}, seed 0. Images a second of CPU time, one core."
    common.write_table(place, head, lines, common.notes(rows[0][1], extra))
    points: dict[str, list[tuple[float, float]]] = {}
    for name, row in rows:
        points.setdefault(name, []).append((row["nfe"], row["values"]["fid"]))
    title = f"FID of {floor['n']} samples"
    common.write_plot(place, points, floor["values"]["fid"], title, "network evaluations an image")


if __name__ == "__main__":
    common.command(main)
