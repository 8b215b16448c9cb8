"""(a) Steps against samplers: the table of the field on Fashion-MNIST, few-step models included.

    uv run python -m benchmarks.experiments.steps --data FOLDER [--slow]

Many samplers at 1000 images each; with --slow 100 to 1000 steps too, and a table of some at 10,000 images.
"""

from benchmarks.experiments import common, few_steps
from jaxdiff.config import Sampling

QUICK = {
    "ddim": (5, 10, 20, 50),
    "ddpm": (10, 20, 50),
    "dpmpp_2m": (5, 10, 20, 50),
    "unipc": (5, 10, 20, 50),
    "heun": (5, 10, 25, 50),
}
SLOW = [("ddim", 100), ("ddpm", 100), ("ddim", 250), ("ddpm", 250), ("ddpm", 1000), ("ddim", 1000)]
LARGE = [("dpmpp_2m", 10), ("dpmpp_2m", 20), ("ddim", 10), ("ddim", 20)]


def table(place: common.Place, n: int, cells: list[tuple[str, int]], file: str) -> None:
    """Measures the cells in their order and writes after each of them, then the few-step models that are there."""
    run = common.base_run(place)
    ruler = common.Ruler(place, n, f"{file}.json")
    floor, rows = ruler.floor(), []
    few = [(name, model, steps) for name, model in few_steps.finished(place) for steps in few_steps.STEPS]
    for method, steps in cells:
        rows.append((method, ruler.row(run, Sampling(sampler=method, steps=steps), model=run.workdir.name)))
        _write(place, file, floor, rows)
    for name, model, steps in few:
        rows.append((name, ruler.row(model, Sampling(sampler="lcm", steps=steps), model=name)))
        _write(place, file, floor, rows)


def _write(place: common.Place, file: str, floor: common.Row, rows: list[tuple[str, common.Row]]) -> None:
    ordered = sorted(rows, key=lambda pair: (pair[0], pair[1]["steps"]))
    head = ("sampler", "steps", "NFE", *common.QUALITY, "images/s")
    lines = [["test images (floor)", "", "", *common.quality(floor), ""]]
    lines += [
        [name, row["steps"], row["nfe"], *common.quality(row), f"{row['images_per_s']:.3g}"] for name, row in ordered
    ]
    extra = f"Weights {rows[0][1]['what']} of step {rows[0][1]['step']}. Images a second of CPU time, one core."
    common.write_table(place, head, lines, common.notes(rows[0][1], extra), f"{file}.md")
    points: dict[str, list[tuple[float, float]]] = {}
    for name, row in ordered:
        points.setdefault(name, []).append((row["nfe"], row["values"]["fid"]))
    title = f"FID of {floor['n']} samples, features of the classifier"
    common.write_plot(place, points, floor["values"]["fid"], title, "network evaluations an image", f"{file}.png")


def main() -> None:
    place = common.start("steps", __doc__, slow="also 100 to 1000 steps, and the table of 10,000 images")
    quick = sorted(((method, steps) for method, counts in QUICK.items() for steps in counts), key=lambda cell: cell[1])
    table(place, 1000, quick + SLOW if place.slow else quick, "n1000")
    if place.slow:
        table(place, 10_000, LARGE, "n10000")


if __name__ == "__main__":
    common.command(main)
