"""Losses, metrics and the optimizer: pure functions of arrays. Array names have the letters of r1jax/model, but for:

S samples that a packed row holds  J preference pairs, or rated responses  I ids of a sampling mask  p, t chunks of T
"""
