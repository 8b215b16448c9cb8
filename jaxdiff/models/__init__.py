"""Networks: the only place where Flax is imported. Everything else sees `predict(x_t, t, cond)`."""

from jaxdiff.models.classifier import Classifier as Classifier
from jaxdiff.models.unet import UNet as UNet
from jaxdiff.models.unet import check as check
