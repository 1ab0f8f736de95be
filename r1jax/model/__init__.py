"""The model: pure functions of arrays. Array names end in their dimensions, one letter each:

B batch  T tokens, the queries of attention  S tokens attended to  D model width  V vocabulary  L layers
H heads of queries  Y heads of keys and values  h heads and z queries that share one  c chunks of t queries
M size of a head of queries or keys: N without position + R rotary (r = R / 2 pairs)  U size of a head of values
Q query rank  C latent rank  W = N + U  X numbers per token in the cache: C + R (MLA), Y M (GQA)
E experts  K experts per token  F feed-forward width  g groups of experts  k groups kept  s segments, samples
G rows, one per (token, expert) pair, grouped by expert  J rows of a tile  I, O inputs and outputs of a matrix

In arguments, `p` holds the weights of one layer or of a part of it, and `c` is the `ModelConfig`.
"""
