"""CIFAR-10, unconditional: the network and the recipe of the DDPM paper (Ho et al. 2020, appendix B).

    uv run train.py cifar10                        # a TFDS data set, prepared once; --data.path is TFDS's data_dir
    uv run train.py cifar10 --dry-run              # what it costs

35,746,307 parameters, 36.6 GFLOP an image and step. Not trained by us: the paper trained 800,000 steps on a TPU v3-8
(10.6 hours) and reports FID 3.17 with 1000 ancestral steps of the large variance, which is what samples are drawn with
here. On 2 CPU cores a step of 8 images takes 2.2 to 2.7 s, so this config is for accelerators.
"""

from jaxdiff.config import Config, Data, Diffusion, Model, Optimizer, Sampling, Train

config = Config(
    data=Data(name="cifar10", flip=True),
    model=Model(channels=128, channel_mults=(1, 2, 2, 2), blocks=2, attention_resolutions=(16,), dropout=0.1),
    diffusion=Diffusion(schedule="linear", num_steps=1000, prediction="noise"),
    optimizer=Optimizer(learning_rate=2e-4, warmup_steps=5000, clip_norm=1.0),
    train=Train(
        steps=800_000,
        batch_size=128,
        checkpoint_every=10_000,
        log_every=100,
        sample_every=20_000,
        ema_decay=0.9999,
    ),
    sampling=Sampling(sampler="ddpm", steps=1000, variance="large"),
)
