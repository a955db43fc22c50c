"""Observables: functions of a frame, and of windows of frames."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["structure", "transport"])
