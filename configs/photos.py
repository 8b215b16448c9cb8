"""Any folder of pictures, such as a few hundred photos, at 32x32; sized for a CPU.

    uv run jaxdiff check-data photos --data.path FOLDER     # bad files, and data.png: what the network will see
    uv run train.py photos --data.path FOLDER               # a grid in runs/photos/samples every two minutes
    uv run sample.py runs/photos

2.8 M parameters, 256,000 presentations at 198 images a CPU second (AMD EPYC): 22 minutes of CPU time, so 11 on two idle
cores at best; the first grid came 2 min 36 s after the start on two busy ones. Not trained to its end by us.
Sub-folders are not told apart unless --model.num_classes says how many classes they are. A few hundred pictures are
learnt by heart: what is drawn resembles them.
"""

from jaxdiff.config import Config, Data, Diffusion, Optimizer, Sampling, Train
from jaxdiff.models import Hourglass

config = Config(
    data=Data(name="folder", resize=32, flip=True),
    model=Hourglass(widths=(48, 96, 192), blocks=(1, 1, 3)),
    diffusion=Diffusion(schedule="flow", prediction="flow", time_sampling="logit_normal"),
    optimizer=Optimizer(name="adam", learning_rate=1e-3, warmup_steps=100, schedule="linear"),
    train=Train(
        steps=4000,
        batch_size=64,
        checkpoint_every="3m",
        log_every=50,
        sample_every="2m",
        ema_decay=0.998,
    ),
    sampling=Sampling(sampler="dpmpp_2m", steps=16),
)
