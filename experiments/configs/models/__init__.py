"""Sizes of each model, in a file of its name: what `--config.model.name=NAME` takes for a system's own model."""
