"""The mesh, sharding rules, sharded operations, programs and hosts. Array names have the letters of r1jax/model, and:

n devices  P (token, expert) pairs  A rows that arrive at a device  d, l a row's D numbers as [d, l]
"""
