"""The experiments of the paper, and what they share."""

import os

# XLA reads it when JAX is imported. Without it, programs that are loaded from the cache come with pages of errors on
# some processors: it takes preferences for instructions that are missing (openxla/xla#44565). Failures still raise.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
