"""A small Transformer put together from the katas' functions, that learns to read handwritten digits."""
