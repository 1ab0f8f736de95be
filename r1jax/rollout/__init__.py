"""The rollout engine, advantages and packing, on the host. Array names have the letters of r1jax/sampling, and:

B groups, or rows of a batch  G samples of a group  T tokens of a row
"""
