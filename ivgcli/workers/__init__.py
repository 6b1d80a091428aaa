"""One run by several processes: one leads, hands out work and writes, the others each drive a GPU."""
