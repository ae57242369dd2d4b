"""Relative flatness of one batch; every estimator has its own file and needs torch alone.

See docs/mathematics.md for the definition and its equivalent forms.
"""
