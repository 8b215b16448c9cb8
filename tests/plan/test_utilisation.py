"""MFU is the images of a second times what one costs, over the peaks of all devices."""

import dataclasses

import jax
import pytest

from jaxdiff.assembly.assemble import assemble
from jaxdiff.config import Config, Data, Model, Train
from jaxdiff.data.description import Expected
from jaxdiff.plan import Utilisation, count_flops, peak_flops, utilisation

CONFIG = Config(
    data=Data(name="folder"),
    model=Model(channels=4, channel_mults=(1,), blocks=1, attention_resolutions=()),
    train=Train(batch_size=16, steps_per_call=3),
)


@pytest.mark.parametrize("remat", [False, True])
def test_mfu_counts_what_a_step_needs_whatever_it_computes_again(monkeypatch, remat):
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, remat=remat))
    run = assemble(config, Expected((4, 4, 1), 0))
    assert Utilisation(run)(100.0) == {}
    monkeypatch.setitem(utilisation._GPUS, "cpu", 1e9)
    plain = assemble(CONFIG, Expected((4, 4, 1), 0)).program
    an_image = count_flops(plain.plain_step, plain.abstract, plain.batch, plain.keys["train"]) / 16
    expected = 5000 * an_image / (1e9 * jax.device_count())
    assert 0.01 < expected < 1
    assert Utilisation(run)(5000.0)["mfu"] == pytest.approx(expected, abs=1e-4)


def test_peaks_are_a_devices():
    assert peak_flops("TPU7x") == 2307e12 / 2  # two devices a chip
    assert peak_flops("TPU v5") == 459e12 and peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("NVIDIA H100 PCIe") < peak_flops("NVIDIA H100 80GB HBM3")
    assert peak_flops("NVIDIA GeForce RTX 3060") is None
