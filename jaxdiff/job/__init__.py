"""Jobs: what the commands do, from a config to files."""
