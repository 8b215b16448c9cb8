"""docs/adding.md keeps its word: its code is a plug-in, and its commands run with it, each family by its new member."""

import contextlib
import re
import shlex
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.augmentations import AUGMENTATIONS
from jaxdiff.codecs import CODECS
from jaxdiff.commands import main
from jaxdiff.conditioning import CONDITIONERS
from jaxdiff.config.files import read_run
from jaxdiff.data.sources import DATASETS
from jaxdiff.denoisers import THRESHOLDS
from jaxdiff.evaluation.collect import Collected
from jaxdiff.evaluation.measure import METRICS, measure
from jaxdiff.guidance import RULES
from jaxdiff.losses import TIME_SAMPLINGS, WEIGHTINGS
from jaxdiff.models import NETWORKS
from jaxdiff.objectives import OBJECTIVES
from jaxdiff.process import PREDICTIONS
from jaxdiff.samplers import SAMPLERS
from jaxdiff.schedules import SCHEDULES
from jaxdiff.times import TIME_GRIDS
from jaxdiff.training.loggers import LOGGERS
from jaxdiff.training.loop import calls
from jaxdiff.training.optimizer import LEARNING_RATES, OPTIMIZERS

PAGE = Path(__file__).parent.parent / "docs" / "adding.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
FAMILIES = (
    *(SCHEDULES, SAMPLERS, WEIGHTINGS, TIME_SAMPLINGS, RULES, THRESHOLDS, TIME_GRIDS, NETWORKS, CONDITIONERS, CODECS),
    *(OBJECTIVES, DATASETS, AUGMENTATIONS, OPTIMIZERS, LEARNING_RATES, METRICS, LOGGERS),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page's commands, done in a folder with its code as own.py; {what each printed}."""
    tables: list[dict[str, Any]] = [*(family.members for family in FAMILIES), PREDICTIONS]
    before = [dict(table) for table in tables]
    folder = tmp_path_factory.mktemp("adding")
    (folder / "own.py").write_text("\n\n".join(code for language, code in BLOCKS if language == "python"))
    with contextlib.chdir(folder):
        (commands,) = (code for language, code in BLOCKS if language == "sh")
        codes = [main(shlex.split(line)[1:]) for line in commands.splitlines()]
        yield folder, codes, [set(table) - set(old) for table, old in zip(tables, before, strict=True)]
    for table, old in zip(tables, before, strict=True):
        table.clear()
        table.update(old)


def test_every_family_has_a_recipe_that_adds_one_member(folder):
    assert [len(new) for new in folder[2]] == [1] * len(folder[2])
    titles = re.findall(r"^\*\*An? ([\w -]+)\*\*", PAGE.read_text(), re.MULTILINE)
    renamed = {"spacing": "time grid"}
    assert {renamed.get(f.title, f.title) for f in FAMILIES} | {"prediction", "hook"} == set(titles)


def test_the_commands_of_the_page_run(folder):
    path, codes, new = folder
    assert codes == [0, 0, 0]
    assert (path / "own.png").exists() and len((path / "runs/own/metrics.txt").read_text().splitlines()) == 1
    used = " ".join(code for language, code in BLOCKS if language == "sh").split()
    assert {name for names in new for name in names} - set(used) == {"contrast"}  # of evaluate: below


def test_the_run_reads_back_with_its_members(folder):
    config: Any = read_run(folder[0] / "runs/own")
    assert config.plugins == ("own.py",) and type(config.model).__name__ == "Dots"
    assert config.diffusion.schedule_options == {"end": 1.4} and config.objective.c == 0.1


def test_the_sampler_of_the_page_is_ddim_without_its_share(folder):
    schedule = SCHEDULES.build("trig")
    denoise = jd.as_denoiser(lambda x, t, cond: 0.5 * x, schedule=schedule, prediction="backwards")
    times, keys = jd.time_grid(schedule, 4, "power", exponent=2.0), jd.sample_keys(jax.random.key(0), 2)
    how = {"shape": (3,), "times": times, "schedule": schedule}
    one, other = (
        jd.sample(keys, denoise, s, **how) for s in (SAMPLERS.build("refreshed", {"share": 0.0}), jd.samplers.ddim())
    )
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_the_metric_and_the_hook_of_the_page(folder):
    real, found = Collected.__new__(Collected), Collected.__new__(Collected)
    real.projections, found.projections = (np.array([[0.0], [far]], np.float32) for far in (1.0, 3.0))
    assert measure(real, found, ["contrast"]) == {"contrast": 3.0}
    names = {}
    exec(next(code for _, code in BLOCKS if "worst = []" in code), names)
    for loss in (1.0, 3.0, 2.0):
        names["hook"].call(1, {"loss": loss}, None)
    assert names["worst"] == [1.0, 3.0, 3.0] and list(calls(0, 4, 2, [names["hook"]])) == [2, 2]


def test_a_run_of_the_page_is_refused_without_its_file(folder, monkeypatch, capsys):
    monkeypatch.setattr("jaxdiff.config.files._plugins", set())
    for words in (["sample"], ["evaluate"], ["convert", "--to", "safetensors"]):
        rest = [str(folder[0] / "out")] if words[0] == "convert" else []
        assert main([words[0], str(folder[0] / "runs/own"), *rest, *words[1:]]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "members of own.py; name that file, if you trust it, by --plugin" in said


def test_evaluate_knows_the_members_of_a_file(folder, capsys):
    words = ["evaluate", str(folder[0] / "runs/own"), "--plugin", str(folder[0] / "own.py"), "--metrics", "fig"]
    assert main(words) == 2
    assert "--metrics 'fig' is not one of fid, kid" in (said := capsys.readouterr().err) and "contrast" in said
