"""Networks: the only place where Flax is imported. Everything else sees `predict(x_t, t, cond)`."""

from jaxdiff.family import Family
from jaxdiff.models.autoencoder import Autoencoder as Autoencoder
from jaxdiff.models.classifier import Classifier as Classifier
from jaxdiff.models.dit import DiT as DiT
from jaxdiff.models.edm2 import EDM2 as EDM2
from jaxdiff.models.hourglass import Hourglass as Hourglass
from jaxdiff.models.inception import Inception as Inception
from jaxdiff.models.network import NetworkOptions as NetworkOptions
from jaxdiff.models.text_encoder import TextEncoder as TextEncoder
from jaxdiff.models.two_towers import TwoTowers as TwoTowers
from jaxdiff.models.unet import Model as Model
from jaxdiff.models.unet import UNet as UNet
from jaxdiff.models.unet import check as check

NETWORKS = Family("network", {"unet": Model, "dit": DiT, "hourglass": Hourglass, "edm2": EDM2, "two_towers": TwoTowers})
NetworkOptions.family = NETWORKS
