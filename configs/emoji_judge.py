"""Judge of emoji: two towers that say how well a picture goes with a text, which `jaxdiff evaluate --judge` asks.

uv run jaxdiff prepare emoji FOLDER                      # says which packages it needs
uv run train.py emoji_judge --data.path FOLDER
"""

from jaxdiff.config import Config, Data, Diffusion, Optimizer, Train
from jaxdiff.models import TwoTowers
from jaxdiff.objectives import Contrastive

config = Config(
    data=Data(name="webdataset", split="train+tones", augmentation="crop", augmentation_options={"padding": 2}),
    model=TwoTowers(dropout=0.1),
    diffusion=Diffusion(
        schedule="flow",
        prediction="flow",
        class_dropout=0.0,
        conditioner="text",
        conditioner_options={"words": 3072, "max_tokens": 16},
    ),
    objective=Contrastive(),
    optimizer=Optimizer(name="adam", learning_rate=1e-3, warmup_steps=100, schedule="cosine"),
    train=Train(steps=1000, batch_size=256, checkpoint_every="3m", log_every=25, sample_every=0, ema_decay=0.99),
)
