"""Derivatives and autograd graphs, with torch alone."""
