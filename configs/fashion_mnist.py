"""Fashion-MNIST."""

from jaxdiff.config import Config, Data, Diffusion, Model, Optimizer, Sampling, Train

config = Config(
    data=Data(name="fashion_mnist", flip=True),
    model=Model(
        channels=32,
        channel_mults=(1, 2, 2),
        blocks=1,
        attention_resolutions=(7,),
        num_classes=10,
        time_injection="scale_shift",
    ),
    diffusion=Diffusion(schedule="cosine", prediction="v", class_dropout=0.1),
    optimizer=Optimizer(learning_rate=1e-3, warmup_steps=200),
    train=Train(steps=10_000, batch_size=64, checkpoint_every=1000, log_every=50, sample_every=1000, ema_decay=0.999),
    sampling=Sampling(sampler="ddim", steps=50, guidance=1.5),
)
