"""Fashion-MNIST by flow matching: a DiT with what the field has settled on (RMSNorm, QK-norm, SwiGLU, 2-D RoPE).

    uv run train.py fashion_mnist_dit --data.path FOLDER         # of the four idx files; Debian: dataset-fashion-mnist
    uv run train.py fashion_mnist_dit --data.path FOLDER --train.evaluate-every 1000 \\
      --train.evaluate-metrics validation_loss fid --train.best fid

1,869,964 parameters. Not trained by us.
"""

from jaxdiff.config import Config, Data, Diffusion, Optimizer, Sampling, Train
from jaxdiff.models import DiT

config = Config(
    data=Data(name="fashion_mnist"),
    model=DiT(
        patch=4,
        width=128,
        depth=6,
        num_heads=4,
        norm="rms",
        qk_norm=True,
        mlp="swiglu",
        positions="rope",
        registers=2,
        num_classes=10,
    ),
    diffusion=Diffusion(schedule="flow", prediction="flow", time_sampling="logit_normal", class_dropout=0.1),
    optimizer=Optimizer(learning_rate=1e-3, warmup_steps=200, schedule="cosine"),
    train=Train(
        steps=10_000,
        batch_size=128,
        checkpoint_every=500,
        log_every=50,
        sample_every=2000,
        ema_decay=0.999,
    ),
    sampling=Sampling(sampler="dpmpp_2m", steps=20, guidance=1.5),
)
