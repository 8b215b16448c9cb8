"""The house rules that no other tool checks."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax.numpy as jnp
import jaxtyping
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import jaxdiff as jd

ROOT = Path(__file__).parent.parent


TRAINING = {"optax", "orbax", "grain", "array_record", "tensorflow_datasets", "sklearn", "tensorboardX"}


@pytest.mark.parametrize(
    ("modules", "foreign"),
    [
        ("jaxdiff", {"flax", "tyro", "PIL", "rich", *TRAINING}),
        ("jaxdiff.commands.sample, jaxdiff.job.sampling", TRAINING),
    ],
)
def test_what_is_imported_loads_no_more_than_it_needs(modules, foreign):
    """A notebook that wants a loss does not wait for Flax, nor sample.py for what only training needs."""
    foreign = {"torch", "tensorflow", "transformers", *foreign}
    script = f"import sys, {modules}; print(*{{name.split('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(run.stdout.split())
    assert {"jax", "jaxdiff"} <= loaded
    assert not loaded & foreign


def test_shapes_are_checked_while_testing():
    """The import hook is on: an annotation that does not hold raises, where broadcasting would hide it."""
    with pytest.raises(jaxtyping.TypeCheckError):
        jd.add_noise(jnp.zeros((2, 3)), jnp.zeros((2, 1)), jd.Marginal(0.6, 0.8))


def test_every_module_has_a_page():
    """A module is in the docs itself, or under its package, which the site renders with all submodules."""
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    shown = set(re.findall(r"^::: (jaxdiff\.\w+)", pages, re.MULTILINE))
    children = (p for p in (ROOT / "jaxdiff").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists())
    modules = {f"jaxdiff.{p.stem}" for p in children if not p.name.startswith("_")}
    assert modules
    assert modules <= shown


def test_constraints_pin_what_is_asked_for_and_name_no_host():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.partition(" ;")[0].split("==") for line in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for wanted in map(Requirement, (*project["dependencies"], *project["optional-dependencies"]["cuda"])):
        assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), wanted
    assert not any("/" in line for line in lines)


def test_changelog_starts_with_the_version_of_the_package():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None and newest[1] == version
