"""Wasserstein GANs: toy distributions of the plane and FashionMNIST, and penalties compared on one of the former."""
