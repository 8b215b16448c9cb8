"""Captioned pictures: a folder of pictures with texts, and a model that draws what is typed; sized for a CPU.

    uv run train.py captions --data.path FOLDER     # with metadata.jsonl, or a .txt beside each picture
    uv run sample.py runs/captions --prompt "a red circle" "a blue square"

Pictures are brought to 32 pixels a side. The texts are read by a small transformer that is trained along. One step a
call: inside a loop XLA's convolutions on CPUs are many times slower.
"""

from jaxdiff.config import Config, Data, Diffusion, Optimizer, Sampling, Train
from jaxdiff.models import Hourglass

config = Config(
    data=Data(name="folder", resize=32),
    model=Hourglass(widths=(48, 96, 192), blocks=(1, 1, 3)),
    diffusion=Diffusion(
        schedule="flow",
        prediction="flow",
        time_sampling="logit_normal",
        class_dropout=0.1,
        conditioner="text",
        conditioner_options={"width": 64, "words": 2048},
    ),
    optimizer=Optimizer(name="adam", learning_rate=1e-3, warmup_steps=100, schedule="linear"),
    train=Train(
        steps=5000,
        batch_size=64,
        checkpoint_every="3m",
        log_every=50,
        sample_every="3m",
        ema_decay=0.998,
    ),
    sampling=Sampling(sampler="dpmpp_2m", steps=16, guidance=4.0),
)
