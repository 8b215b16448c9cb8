"""LoRA files of three ways to name their tensors: added to the weights, and what is none is refused."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from jaxdiff.errors import UserError
from jaxdiff.interop import safetensors
from jaxdiff.interop.latent import read_text_unet
from jaxdiff.interop.lora import TEXT, UNET, Lora, merged, read_lora
from jaxdiff.interop.schedulers import scheduler_from_config
from jaxdiff.interop.stable_diffusion import chosen
from tests.stable_diffusion import network_folder, tensors_of

RNG = np.random.default_rng(0)
LINEAR, CONV = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0", "down_blocks.0.resnets.0.conv1"
RANK, ALPHA = 2, 6.0


def change(shape):
    """A and B of a layer, and the change of its weight that they are."""
    a, b = RNG.normal(size=(RANK, *shape[1:])), RNG.normal(size=(shape[0], RANK))
    return a.astype(np.float32), b.astype(np.float32), np.tensordot(b, a, 1) / RANK


def write(path, tensors):
    safetensors.write(path, tensors, {})
    return path


@pytest.mark.parametrize("kind", ["peft", "kohya", "processor"])
def test_changes_are_added_under_every_way_to_name_them(tmp_path, kind):
    weights = tensors_of("unet_1")
    expected, tensors = dict(weights), {}
    for layer in (LINEAR, *([] if kind == "processor" else [CONV])):
        a, b, delta = change(weights[f"{layer}.weight"].shape)
        b = b.reshape(*b.shape, *[1] * (a.ndim - 2))
        if kind == "kohya":
            name = "lora_unet_" + layer.replace(".", "_")
            tensors |= {
                f"{name}.lora_down.weight": a,
                f"{name}.lora_up.weight": b,
                f"{name}.alpha": np.float32([ALPHA]),
            }
            delta = delta * ALPHA
        elif kind == "peft":
            tensors |= {f"unet.{layer}.lora_A.weight": a, f"unet.{layer}.lora_B.weight": b}
            delta = delta * RANK
        else:
            name = "unet." + layer.replace("attn1.to_out.0", "attn1.processor.to_out_lora")
            tensors |= {f"{name}.down.weight": a, f"{name}.up.weight": b}
            delta = delta * RANK
        expected[f"{layer}.weight"] = weights[f"{layer}.weight"] + 0.5 * delta
    lora = read_lora(write(tmp_path / "lora.safetensors", tensors), 0.5)
    added = merged(weights, lora, UNET)
    for name, value in expected.items():
        assert_allclose(added[name], value, atol=1e-5, err_msg=name)
    assert merged({"other.weight": np.ones(3)}, lora, TEXT).keys() == {"other.weight"}


def test_a_folder_with_a_lora_is_the_folder_of_the_sum(tmp_path):
    weights = tensors_of("unet_1")
    a, b, delta = change(weights[f"{LINEAR}.weight"].shape)
    lora = Lora("f", 1.0, {f"unet.{LINEAR}.lora_A.weight": a, f"unet.{LINEAR}.lora_B.weight": b})
    part = read_text_unet(network_folder("unet_1", tmp_path / "unet"), lora=lora)
    leaves = [leaf for leaf in _leaves(part.params) if leaf.shape == delta.T.shape]
    wanted = (weights[f"{LINEAR}.weight"] + RANK * delta).T
    assert any(np.allclose(leaf, wanted, atol=1e-5) for leaf in leaves)


def _leaves(tree):
    return [leaf for value in tree.values() for leaf in (_leaves(value) if isinstance(value, dict) else [value])]


@pytest.mark.parametrize(
    ("tensors", "right"),
    [
        ({}, "holds nothing"),
        ({"model.weight": np.ones(2, np.float32)}, "model.weight and 0 more such tensors, which is no LoRA"),
        ({"unet.nowhere.lora_A.weight": np.ones((2, 2), np.float32)}, "changes nowhere, which this network has not"),
        (
            {f"unet.{LINEAR}.lora_{part}.weight": np.ones((3, 3), np.float32) for part in "AB"},
            "does not fit mid_block.attentions.0",
        ),
    ],
)
def test_what_is_no_lora_of_the_network_is_refused(tmp_path, tensors, right):
    with pytest.raises(UserError, match=right):
        merged(tensors_of("unet_1"), read_lora(write(tmp_path / "lora.safetensors", tensors)), UNET)
    with pytest.raises(UserError, match="is no file"):
        read_lora(tmp_path / "none.safetensors")


def test_lcm_draws_on_the_grid_of_its_distillation_whatever_the_folder_s_scheduler():
    """As LCMScheduler.from_config: steps 999, 759, 499, 259 of 1000 for four of fifty."""
    ours = scheduler_from_config({"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear"})
    times = chosen(ours, "lcm", {}, None).times(4)
    assert (times * 1000 - 1).round().astype(int).tolist()[:4] == [999, 759, 499, 259]
