"""Value learning: from preference pairs, or prompts and a reward, to the two kinds of value."""
