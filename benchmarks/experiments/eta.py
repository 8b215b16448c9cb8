"""(d) DDIM's randomness: eta from 0 to 1 at 10 to 100 steps, the DDIM paper's table 1 in small.

uv run python -m benchmarks.experiments.eta --data FOLDER
"""

from benchmarks.experiments import common
from jaxdiff.config import Sampling

ETAS, STEPS = (0.0, 0.2, 0.5, 1.0), (10, 20, 50, 100)


def main() -> None:
    place = common.start("eta", __doc__)
    run, ruler = common.base_run(place), common.Ruler(place, 1000)
    floor, found = ruler.floor(), {}
    for steps in STEPS:
        for eta in ETAS:
            found[steps, eta] = ruler.row(run, Sampling(sampler="ddim", steps=steps, eta=eta))
        done = [count for count in STEPS if (count, ETAS[-1]) in found]
        lines = [[f"{eta:g}", *(_cell(found[count, eta]) for count in done)] for eta in ETAS]
        extra = (
            f"FID, and recall in brackets; floor {_cell(floor)}. One training seed; weights {found[10, 0.0]['what']}."
        )
        head = ("eta", *(f"{count} steps" for count in done))
        common.write_table(place, head, lines, common.notes(found[10, 0.0], extra))
        points = {f"eta {eta:g}": [(count, found[count, eta]["values"]["fid"]) for count in done] for eta in ETAS}
        common.write_plot(place, points, floor["values"]["fid"], "FID of 1000 samples, DDIM", "steps")


def _cell(row: common.Row) -> str:
    return f"{row['values']['fid']:.4g} ({row['values']['recall']:.3f})"


if __name__ == "__main__":
    common.command(main)
