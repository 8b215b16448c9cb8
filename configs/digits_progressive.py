"""Handwritten digits in one step: `digits_flow` by progressive distillation, 16 steps to 8, 4, 2 and 1.

    uv run train.py digits_flow --train.steps 800
    uv run train.py digits_progressive
    uv run sample.py runs/digits_progressive
    uv run benchmarks/digits_quality.py runs/digits_progressive   # the numbers below

In one step an SVM trained on the real digits reads 99.6 % of 500 samples as the class asked for, and the Fréchet
distance of pixels is 67; `digits_flow`, trained for those 800 steps, has 52 in 20 steps and 228 in one (held-out real
images: 18). 230 seconds of 2 cores that did other work beside.
"""

from jaxdiff.config import Config, Data, Diffusion, Optimizer, Sampling, Train
from jaxdiff.models import DiT
from jaxdiff.objectives import Progressive

config = Config(
    data=Data(name="digits"),
    model=DiT(patch=2, width=64, depth=4, num_heads=4, num_classes=10),
    diffusion=Diffusion(schedule="flow", prediction="flow", time_sampling="logit_normal", class_dropout=0.1),
    objective=Progressive(start="runs/digits_flow", first=8, halve_every=200, guidance=1.5),
    optimizer=Optimizer(learning_rate=5e-4, warmup_steps=20, schedule="cosine"),
    train=Train(steps=800, batch_size=128, checkpoint_every=400, log_every=50, sample_every=0, ema_decay=0.98),
    sampling=Sampling(sampler="ddim", steps=1),
)
