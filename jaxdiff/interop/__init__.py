"""Weights of other projects, in and out: diffusers folders, OpenAI checkpoints, safetensors, Flax msgpack.

No torch, diffusers or transformers is needed, nothing that is read is executed, and what does not fit is refused
with every tensor and option that does not, before anything is written.
"""

from jaxdiff.interop.diffusers import Imported as Imported
from jaxdiff.interop.diffusers import read_unet as read_unet
from jaxdiff.interop.export import export_part as export_part
from jaxdiff.interop.export import export_pipeline as export_pipeline
from jaxdiff.interop.export import export_unet as export_unet
from jaxdiff.interop.latent import Part as Part
from jaxdiff.interop.latent import read_autoencoder as read_autoencoder
from jaxdiff.interop.latent import read_text_encoder as read_text_encoder
from jaxdiff.interop.latent import read_text_unet as read_text_unet
from jaxdiff.interop.openai import read_openai as read_openai
from jaxdiff.interop.pipeline import Pipeline as Pipeline
from jaxdiff.interop.pipeline import read_pipeline as read_pipeline
from jaxdiff.interop.schedulers import Scheduler as Scheduler
from jaxdiff.interop.schedulers import read_scheduler as read_scheduler
