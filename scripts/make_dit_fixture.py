"""Makes tests/fixtures/dit with torch and diffusers: what tests/models/test_dit.py compares jaxdiff with.

    /tmp/torchenv/bin/python scripts/make_dit_fixture.py

Its environment is that of make_interop_fixtures.py. The network is tiny, its weights come from their names. Each block
of diffusers' DiT has an embedding of time and class of its own; as in published weights they are one and the same here.
"""

import json
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import DiTTransformer2DModel
from make_interop_fixtures import weight

ROOT = Path(__file__).parent.parent / "tests" / "fixtures" / "dit"
FIRST = "transformer_blocks.0.norm1.emb."
CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 3,
    "out_channels": 6,
    "num_layers": 3,
    "sample_size": 8,
    "num_embeds_ada_norm": 5,
    "norm_eps": 1e-6,  # as in the paper's code
}


def main() -> None:
    """Writes the tensors' shapes, inputs and outputs."""
    net = DiTTransformer2DModel(**CONFIG).eval()
    names = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    one = {name: FIRST + name.split(".emb.")[1] if ".emb." in name else name for name in names}
    net.load_state_dict({name: torch.from_numpy(weight(one[name], shape)) for name, shape in names.items()})
    generator = torch.Generator().manual_seed(0)
    x, timesteps = torch.randn((4, 3, 8, 8), generator=generator), torch.tensor([0, 1, 500, 999])
    labels = torch.tensor([0, 3, 4, 5])  # the last: no class
    with torch.no_grad():
        output = net(x, timesteps, labels).sample
    ROOT.mkdir(parents=True, exist_ok=True)
    arrays = {"x": x, "timesteps": timesteps, "labels": labels, "output": output}
    np.savez_compressed(ROOT / "io.npz", **{name: value.numpy() for name, value in arrays.items()})
    shapes = {name: shape for name, shape in names.items() if one[name] == name}
    versions = {module.__name__: module.__version__ for module in (torch, diffusers, np)}
    (ROOT / "about.json").write_text(json.dumps({"config": CONFIG, "tensors": shapes, "versions": versions}) + "\n")


if __name__ == "__main__":
    main()
