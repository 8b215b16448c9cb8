"""Fashion-MNIST in 1 to 4 steps: `fashion_mnist_small`, trained first, distilled into a consistency model.

    uv run train.py fashion_mnist_small --data.path FOLDER
    uv run train.py fashion_mnist_consistency --data.path FOLDER      # --objective.teacher false: by the images alone
    uv run sample.py runs/fashion_mnist_consistency --steps 1

2,000 steps, five minutes of one CPU core. Distilled: FID 80, 76 and 70 at 1, 2 and 4 steps, where its teacher has
209, 89 and 55 (and 50 at 20 steps); tuned by the images alone: 110, 80 and 64 (n = 2,000, features of jaxdiff's own
classifier, floor 1.7; docs/experiments, few steps).
"""

from jaxdiff.config import Config, Data, Diffusion, Model, Optimizer, Sampling, Train
from jaxdiff.objectives import Consistency

config = Config(
    data=Data(name="fashion_mnist"),
    model=Model(
        patch=4,
        channels=32,
        channel_mults=(1,),
        blocks=1,
        attention_resolutions=(),
        num_classes=10,
        time_injection="scale_shift",
    ),
    diffusion=Diffusion(schedule="cosine", prediction="v", class_dropout=0.1),
    objective=Consistency(start="runs/fashion_mnist_small", halve_every=700),
    optimizer=Optimizer(learning_rate=2e-4, warmup_steps=50),
    train=Train(steps=2000, batch_size=64, checkpoint_every=500, log_every=50, sample_every=2000, ema_decay=0.99),
    sampling=Sampling(sampler="lcm", steps=2),
)
