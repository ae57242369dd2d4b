"""Fine-tune a model that predicts a number for texts or pairs of texts: STS-B, or your own files.

The code is that of text classification. Its configuration sets do_regression, and labels of type float do the same.
"""

from __future__ import annotations

from .text_classification import ARGUMENT_TYPES, main, make_run

__all__ = ["ARGUMENT_TYPES", "main", "make_run"]
