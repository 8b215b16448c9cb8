"""CIFAR-10, class-conditional, by EDM (Karras et al. 2022): preconditioning, log-normal noise, told augmentation.

    uv run train.py cifar10_edm                    # a TFDS data set, prepared once; --data.path is TFDS's data_dir
    uv run train.py cifar10_edm --dry-run          # what it costs

57,716,483 parameters. Not trained by us: the paper trained on 200 million images, which is 390,625 steps, and reports
FID 1.79 with 18 steps of Heun's method (35 network evaluations). Channels, blocks, attention, dropout, batch, rate,
average and augmentation are those of its DDPM++ network of 55.7 M parameters; that one also scales its residual sums
and takes another embedding of the noise level, so that the number is not ours to claim.
"""

from jaxdiff.config import Config, Data, Diffusion, Model, Optimizer, Sampling, Train

config = Config(
    data=Data(name="cifar10", augmentation="edm", augmentation_options={"p": 0.12}),
    model=Model(
        channels=128,
        channel_mults=(2, 2, 2),
        blocks=4,
        attention_resolutions=(16,),
        dropout=0.13,
        num_classes=10,
        time_injection="scale_shift",
    ),
    diffusion=Diffusion(
        schedule="edm", prediction="edm", weighting="edm", time_sampling="log_normal", class_dropout=0.0
    ),
    optimizer=Optimizer(name="adam", learning_rate=1e-3, warmup_steps=19_531),
    train=Train(
        steps=390_625,
        batch_size=512,
        checkpoint_every=10_000,
        log_every=100,
        sample_every=20_000,
        ema_decay=0.99929,
    ),
    sampling=Sampling(sampler="heun", steps=18, spacing="karras", threshold="none"),
)
