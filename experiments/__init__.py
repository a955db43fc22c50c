"""The experiments of the paper, and what they share."""
