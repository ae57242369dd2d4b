"""Flatness-aware fine-tuning: ``Trainer`` becomes ``FAMTrainer``."""

import lazy_loader

from ._version import __version__ as __version__

# The public names and their modules are listed in __init__.pyi. Each is imported at its first use, so that `import
# hf_fam` is fast, and RelativeFlatness needs torch alone.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
# It needs scikit-learn, which `from hf_fam import *` must not load.
__all__.remove("FlatLogisticRegression")
