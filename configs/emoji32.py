"""Emoji from a sentence: 32x32, six styles, text encoder and all; the long one.

    uv run jaxdiff prepare emoji FOLDER                      # says which packages it needs
    uv run train.py emoji32 --data.path FOLDER
    uv run sample.py runs/emoji32 --prompt "green heart, noto" "rocket, twemoji"

`emoji32_small` for ten times as long, 1.7 M presentations, sized for three hours on two idle cores. It has
not been trained.
"""

from jaxdiff.config import Config, Data, Diffusion, Optimizer, Sampling, Train
from jaxdiff.models import Hourglass

config = Config(
    data=Data(name="webdataset"),
    model=Hourglass(widths=(64, 128, 256), blocks=(1, 1, 4)),
    diffusion=Diffusion(
        schedule="flow",
        prediction="flow",
        time_sampling="logit_normal",
        class_dropout=0.1,
        conditioner="text",
        conditioner_options={"words": 3072, "max_tokens": 16},
    ),
    optimizer=Optimizer(name="adam", learning_rate=1e-3, warmup_steps=200, schedule="wsd"),
    train=Train(
        steps=20_000,
        batch_size=64,
        checkpoint_every="10m",
        log_every=50,
        sample_every="30m",
        ema_decay=0.999,
    ),
    sampling=Sampling(sampler="dpmpp_2m", steps=16, guidance=4.0),
)
