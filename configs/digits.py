"""Handwritten digits of scikit-learn, 1,437 of 8x8 pixels, class-conditional: the whole way in minutes on a CPU.

    uv run train.py                                  # 2 min 38 s on 2 cores, compiling included
    uv run sample.py runs/digits                     # 64 samples: DDIM, 50 steps, guidance 1.5
    uv run benchmarks/digits_quality.py runs/digits  # the numbers below

An SVM trained on the real digits (99.2 % right on held-out ones) reads 100.0 % of 500 samples as the class asked for.
They are no copies: the mean distance to the nearest training image is 1.002 of what it is for held-out real images.
"""

from jaxdiff.config import Config, Data, Diffusion, Model, Optimizer, Sampling, Train

config = Config(
    data=Data(name="digits"),
    model=Model(channels=32, channel_mults=(1, 2), blocks=1, attention_resolutions=(), num_classes=10, norm_groups=8),
    diffusion=Diffusion(schedule="cosine", prediction="noise", class_dropout=0.1),
    optimizer=Optimizer(learning_rate=2e-3, warmup_steps=100),
    train=Train(steps=1000, batch_size=128, checkpoint_every=500, log_every=50, sample_every=250, ema_decay=0.995),
    sampling=Sampling(sampler="ddim", steps=50, guidance=1.5),
)
