"""Data sets: records, decoded and checked, as batches that are a function of seed and step."""
