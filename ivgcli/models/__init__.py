"""Networks and what they read.

The shape alphabet of the whole package: `P` prompts, `R` rows (sequences that decode at once), `B` the rows of
one step, `N` tokens of one packed forward pass, `T` positions, `V` vocabulary, `C` candidate tokens, `H` hidden
size, `D` outputs per position of a network (V for a language model, 1 for a scalar value head).
"""
