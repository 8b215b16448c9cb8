"""What a run will cost, before it runs: on this machine, or on TPU slices that are not there.

`plan(config, "v5e:16x16")` compiles the step that train.py would run, with libtpu (the extra `tpu`) and no TPU, and
says whether it fits, in how much memory, what it sends, and the least time it can take. Arithmetic is counted from
the jaxpr and time bounded by published peaks: XLA's own figures for both count the body of a scan once.
"""

from jaxdiff.plan.chips import CHIPS, Chip, Topology, parse_topology
from jaxdiff.plan.collectives import Collective, collectives
from jaxdiff.plan.compiling import Compiled, stablehlo_hash
from jaxdiff.plan.flops import count_flops
from jaxdiff.plan.largest import Largest, largest_batch
from jaxdiff.plan.memory import Memory, step_memory
from jaxdiff.plan.planning import Change, Plan, plan
from jaxdiff.plan.report import describe, description, plan_text, plans_json
from jaxdiff.plan.roofline import Roofline, roofline
from jaxdiff.plan.utilisation import Utilisation, peak_flops

__all__ = [
    "CHIPS",
    "Change",
    "Chip",
    "Collective",
    "Compiled",
    "Largest",
    "Memory",
    "Plan",
    "Roofline",
    "Topology",
    "Utilisation",
    "collectives",
    "count_flops",
    "describe",
    "description",
    "largest_batch",
    "parse_topology",
    "peak_flops",
    "plan",
    "plan_text",
    "plans_json",
    "roofline",
    "stablehlo_hash",
    "step_memory",
]
