"""What a run will cost, before it runs: arithmetic counted from its jaxpr, memory as XLA has planned it."""

from jaxdiff.plan.flops import count_flops
from jaxdiff.plan.memory import Memory, step_memory
from jaxdiff.plan.report import describe

__all__ = ["Memory", "count_flops", "describe", "step_memory"]
