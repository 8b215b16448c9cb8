"""`jaxdiff --list`: the configs, and the members of every family by the option that names them, a line each."""

from jaxdiff.augmentations import AUGMENTATIONS
from jaxdiff.codecs import CODECS
from jaxdiff.commands.parser import config_lines
from jaxdiff.conditioning import CONDITIONERS
from jaxdiff.data.sources import DATASETS
from jaxdiff.denoisers import THRESHOLDS
from jaxdiff.evaluation.measure import METRICS
from jaxdiff.guidance import RULES
from jaxdiff.losses import TIME_SAMPLINGS, WEIGHTINGS
from jaxdiff.models import NETWORKS
from jaxdiff.objectives import OBJECTIVES
from jaxdiff.process import PREDICTIONS
from jaxdiff.samplers import SAMPLERS
from jaxdiff.schedules import SCHEDULES
from jaxdiff.times import TIME_GRIDS
from jaxdiff.training.loggers import LOGGERS
from jaxdiff.training.optimizer import LEARNING_RATES, OPTIMIZERS

_FAMILIES = {
    "data.name": DATASETS,
    "data.augmentation": AUGMENTATIONS,
    "model": NETWORKS,
    "objective": OBJECTIVES,
    "diffusion.schedule": SCHEDULES,
    "diffusion.weighting": WEIGHTINGS,
    "diffusion.time_sampling": TIME_SAMPLINGS,
    "diffusion.conditioner": CONDITIONERS,
    "diffusion.codec": CODECS,
    "optimizer.name": OPTIMIZERS,
    "optimizer.schedule": LEARNING_RATES,
    "train.loggers": LOGGERS,
    "sampling.sampler": SAMPLERS,
    "sampling.spacing": TIME_GRIDS,
    "sampling.guidance_rule": RULES,
    "sampling.threshold": THRESHOLDS,
    "metrics": METRICS,
}


def listing() -> str:
    """Configs and families, with the first line of each member's documentation."""
    lines = [config_lines(), "", f"--diffusion.prediction: {', '.join(PREDICTIONS)}"]
    for option, family in _FAMILIES.items():
        own = (f"  {name:<28}{family.summary(name)}" for name in family.members)
        lines += ["", f"--{option}: {family.title}", *own]
    return "\n".join(lines)
