"""Assembly: a config becomes parts, once and here; below nobody sees a config."""
