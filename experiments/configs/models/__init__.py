"""Sizes of each model, in a file of its name: `--config.model.name=NAME` replaces a system's own model by it."""
