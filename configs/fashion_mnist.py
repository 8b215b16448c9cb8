"""Fashion-MNIST, 28x28, class-conditional: a U-Net on patches of 4x4 pixels, for an hour of one CPU core.

    uv run train.py fashion_mnist --data.path FOLDER       # of the four idx files; Debian: dataset-fashion-mnist

Images are not mirrored: in this data set every shoe points the same way, and so should every sample.
"""

from jaxdiff.config import Config, Data, Diffusion, Model, Optimizer, Sampling, Train

config = Config(
    data=Data(name="fashion_mnist"),
    model=Model(
        patch=4,
        channels=64,
        channel_mults=(1,),
        blocks=1,
        attention_resolutions=(),
        num_classes=10,
        time_injection="scale_shift",
    ),
    diffusion=Diffusion(schedule="cosine", prediction="v", class_dropout=0.1),
    optimizer=Optimizer(learning_rate=1e-3, warmup_steps=200),
    train=Train(steps=20_000, batch_size=64, checkpoint_every=500, log_every=50, sample_every=2000, ema_decay=0.999),
    sampling=Sampling(sampler="dpmpp_2m", steps=20),
)
