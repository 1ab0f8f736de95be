"""Rollouts on the device: pure functions of arrays. Array names have the letters of r1jax/model, but for:

S slots, each with one response  P tokens of a prompt  N tokens of a round  T tokens of a slot that a step runs
W tokens of a slot in the cache  I ids of a sampling mask
"""
