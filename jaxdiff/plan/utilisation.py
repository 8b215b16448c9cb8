"""Model FLOPs utilisation of a run: what it computes a second, over what its devices could at most."""

from typing import Any

from jaxdiff.assembly.assemble import Assembly
from jaxdiff.plan.chips import CHIPS
from jaxdiff.plan.planning import step_flops

_TPUS = {  # what JAX calls them
    "v4": ("TPU v4",),
    "v5e": ("TPU v5 lite", "TPU v5e"),
    "v5p": ("TPU v5", "TPU v5p"),
    "v6e": ("TPU v6 lite", "TPU v6e"),
    "tpu7x": ("TPU7x",),
}
# bf16 without sparsity, NVIDIA's data sheets of A100, H100 (SXM, PCIe) and H200 (SXM).
_GPUS = {"NVIDIA A100": 312e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H100 PCIe": 756e12, "NVIDIA H200": 989e12}


def peak_flops(device_kind: str) -> float | None:
    """Published bf16 operations a second of one device, or None where we know of none (CPUs among them).

    Args:
      device_kind: of a `jax.Device`.

    >>> peak_flops("TPU v5 lite"), peak_flops("NVIDIA A100-SXM4-80GB"), peak_flops("cpu")
    (197000000000000.0, 312000000000000.0, None)
    """
    for generation, kinds in _TPUS.items():
        if device_kind in kinds:
            return CHIPS[generation].flops / CHIPS[generation].devices
    return next((peak for kind, peak in _GPUS.items() if device_kind.startswith(kind)), None)


class Utilisation:
    """images a second -> {"mfu": ...}, or {} where the devices' peak is not known.

    Arithmetic is that of convolutions and matrix products, forward and backward, without what `model.remat` computes
    again; the peak is bf16's, whatever the run computes in (Chowdhery et al. 2022, PaLM, appendix B).

    Args:
      run: what is trained.
    """

    def __init__(self, run: Assembly):
        devices: list[Any] = list(run.program.mesh.devices.flat)
        peak, self._full = peak_flops(devices[0].device_kind), None
        if peak is not None:  # tracing the step once more takes a second or two
            self._full = len(devices) * peak * run.train.batch_size / step_flops(run.plain())

    def __call__(self, images_per_s: float) -> dict[str, float]:
        """The entry of metrics.jsonl."""
        return {} if self._full is None else {"mfu": round(images_per_s / self._full, 4)}
