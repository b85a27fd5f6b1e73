"""The jobs of a sweep: where they land, what they may use, their process trees, and what is said about them."""
