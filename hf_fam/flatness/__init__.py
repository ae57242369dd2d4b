"""Relative flatness of one batch, one estimator a file; torch is all they know.

See docs/mathematics.md for the definition and its equivalent forms.
"""
