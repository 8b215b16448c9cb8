"""ImageNet at 64x64, class-conditional: the network and recipe of ADM (Dhariwal & Nichol 2021, table 11).

    uv run train.py imagenet64                    # the TFDS data set imagenet_resized/64x64
    uv run train.py imagenet64 --dry-run --topology v5e:16x16 --quick        # what a chip of a pod will hold; no TPU

295,905,222 parameters; 8 images a chip on the 256 chips of a v5e pod are the paper's batch of 2048. Not trained by us;
the paper trained 540,000 steps and reports FID 2.07 with 250 steps, unguided. As in the paper the variance is learned
(a prediction of 6 channels, the weighted bound in the loss) and samples are drawn by its 250 ancestral steps. One
difference: its images are reduced by its own code, TFDS's by that of Chrabaszcz et al. 2017. We compute in bfloat16 and
recompute activations, with the 16 GB of a v5e chip in mind; docs/plan.md has the plan.
"""

from jaxdiff.config import Config, Data, Diffusion, Model, Optimizer, Sampling, Train
from jaxdiff.objectives import Hybrid

config = Config(
    data=Data(name="imagenet_resized/64x64", flip=True),
    model=Model(
        channels=192,
        channel_mults=(1, 2, 3, 4),
        blocks=3,
        attention_resolutions=(32, 16, 8),
        head_dim=64,
        dropout=0.1,
        num_classes=1000,
        time_injection="scale_shift",
        resample="resblock",
        norm_eps=1e-5,
        frequency_shift=0,
        dtype="bfloat16",
        remat=True,
    ),
    diffusion=Diffusion(schedule="cosine", num_steps=1000, prediction="noise", class_dropout=0.0),
    objective=Hybrid(bound_weight=0.001),
    optimizer=Optimizer(learning_rate=3e-4, warmup_steps=5000, clip_norm=1.0),
    train=Train(
        steps=540_000,
        batch_size=2048,
        checkpoint_every=5000,
        log_every=100,
        sample_every=10_000,
        ema_decay=0.9999,
    ),
    sampling=Sampling(sampler="ddpm", steps=250, variance="learned"),
)
