"""Handwritten digits by flow matching: a small DiT on rectified flow, class-conditional, in minutes on a CPU.

    uv run train.py digits_flow
    uv run sample.py runs/digits_flow                     # 64 samples: DPM-Solver++(2M), 20 steps, guidance 1.5
    uv run benchmarks/digits_quality.py runs/digits_flow  # the numbers below

An SVM trained on the real digits (99.2 % right on held-out ones) reads 100.0 % of 500 samples as the class asked for
(97.2 % without guidance). They are no copies: the mean distance to the nearest training image is 1.000 of what it is
for held-out real images. Trained by us in two pieces beside other work; its last 400 steps, nearly alone on 2 cores,
went at 1,500 to 1,800 images/s, at which the 2,000 steps take two and a half to three minutes.
"""

from jaxdiff.config import Config, Data, Diffusion, Optimizer, Sampling, Train
from jaxdiff.models import DiT

config = Config(
    data=Data(name="digits"),
    model=DiT(patch=2, width=64, depth=4, num_heads=4, num_classes=10),
    diffusion=Diffusion(schedule="flow", prediction="flow", time_sampling="logit_normal", class_dropout=0.1),
    optimizer=Optimizer(learning_rate=2e-3, warmup_steps=100, schedule="cosine"),
    train=Train(steps=2000, batch_size=128, checkpoint_every=500, log_every=50, sample_every=1000, ema_decay=0.995),
    sampling=Sampling(sampler="dpmpp_2m", steps=20, guidance=1.5),
)
