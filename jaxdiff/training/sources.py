"""`open_dataset` under its name of jaxdiff 0.1; it lives in jaxdiff.data.sources."""

from jaxdiff.data.sources import open_dataset as open_dataset
