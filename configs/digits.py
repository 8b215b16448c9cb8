"""Handwritten digits, 8x8, class-conditional."""

from jaxdiff.config import Config, Data, Diffusion, Model, Optimizer, Sampling, Train

config = Config(
    data=Data(name="digits"),
    model=Model(channels=32, channel_mults=(1, 2), blocks=1, attention_resolutions=(), num_classes=10),
    diffusion=Diffusion(schedule="cosine", prediction="noise", class_dropout=0.1),
    optimizer=Optimizer(learning_rate=2e-3, warmup_steps=100),
    train=Train(steps=1000, batch_size=128, checkpoint_every=500, log_every=50, sample_every=250, ema_decay=0.995),
    sampling=Sampling(sampler="ddim", steps=50, guidance=1.5),
)
