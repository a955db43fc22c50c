"""Stability-aware training of neural network interatomic potentials, in JAX."""

import lazy_loader

# Imported lazily: the estimator alone needs neither Flax nor jax-md. The names are in `__init__.pyi`.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
