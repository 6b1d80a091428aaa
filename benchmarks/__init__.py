"""Side-by-side speed measurements of ivg and the loops it is compared with."""
