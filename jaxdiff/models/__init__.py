"""Networks: the only place where Flax is imported. Everything else sees `predict(x_t, t, cond)`."""

from jaxdiff.models.autoencoder import Autoencoder as Autoencoder
from jaxdiff.models.classifier import Classifier as Classifier
from jaxdiff.models.dit import DiT as DiT
from jaxdiff.models.inception import Inception as Inception
from jaxdiff.models.text_encoder import TextEncoder as TextEncoder
from jaxdiff.models.unet import Model as Model
from jaxdiff.models.unet import UNet as UNet
from jaxdiff.models.unet import check as check

NETWORKS = {"unet": Model, "dit": DiT}  # the options of each: what --model.name chooses from
