"""ImageNet at 256x256 in Stable Diffusion's latents, class-conditional: SiT-XL/2 (Ma et al. 2024), for a pod.

    uv run train.py imagenet256_sit --diffusion.codec_options.folder VAE      # the TFDS data set imagenet2012
    uv run --extra tpu train.py imagenet256_sit --dry-run --topology v5e:16x16 --quick   # what a chip will hold

674,816,272 parameters, the network of DiT-XL/2; straight paths, prediction of the velocity, uniform times, Adam at a
constant 1e-4, batch 256. Not trained by us: the paper trained 7,000,000 steps and reports FID 2.06 with guidance 1.5
and 250 steps of its SDE sampler, 2.15 with an ODE solver, such as Heun's here. VAE is the `vae` folder of a Stable
Diffusion model, which is not trained. Images are encoded in the step, where the paper's were encoded beforehand, and by
the mean of the latents, where the paper's were drawn; the crops are the centres of images, mirrored at random. We
compute in bfloat16; docs/plan.md has the plan.
"""

from jaxdiff.config import Config, Data, Diffusion, Optimizer, Parallel, Sampling, Train
from jaxdiff.models import DiT

config = Config(
    data=Data(name="imagenet2012", resize=256, flip=True),
    model=DiT(patch=2, width=1152, depth=28, num_heads=16, num_classes=1000, dtype="bfloat16", remat=True),
    diffusion=Diffusion(schedule="flow", prediction="flow", class_dropout=0.1, codec="autoencoder"),
    optimizer=Optimizer(name="adam", learning_rate=1e-4, warmup_steps=0),
    train=Train(
        steps=7_000_000,
        batch_size=256,
        checkpoint_every=10_000,
        log_every=100,
        sample_every=50_000,
        ema_decay=0.9999,
    ),
    sampling=Sampling(sampler="heun", steps=125, guidance=1.5, threshold="none"),
    parallel=Parallel(fsdp=4),
)
