"""The worse model that autoguidance goes away from."""

from typing import Any

from jaxdiff.config import Sampling, flat
from jaxdiff.config.files import read_run
from jaxdiff.errors import UserError
from jaxdiff.storage import Place, place
from jaxdiff.training.checkpoints import restore_with_meta
from jaxdiff.training.snapshots import reconstruct


def weak_params(sampling: Sampling, workdir: Place, state: Any, sharding: Any = None) -> Any:
    """The parameters that autoguidance goes away from: of another run, of an earlier step, or of a wider average.

    Raises:
      UserError: the options name none, or one that is not there.
    """
    if sampling.guidance == 1 or sampling.guidance_rule != "autoguidance":
        return None
    run, step, ema = (sampling.guidance_options.get(name) for name in ("run", "step", "ema"))
    if ema is not None and not run:
        return reconstruct(workdir, state, read_run(workdir).train.posthoc_ema, ema, sharding)
    if not run and step is None:
        raise UserError("guidance rule autoguidance needs a worse model: guidance_options.run, step or ema")
    other = place(run) if run else workdir
    own, weak = flat(read_run(workdir)), flat(read_run(other))
    wrong = [name for name in own if name.startswith("model.") and own[name] != weak.get(name)]
    if wrong:
        raise UserError(f"guidance_options.run: {other} has another network ({', '.join(wrong)})")
    return restore_with_meta(other, step=step, sharding=sharding)[0].ema_params
