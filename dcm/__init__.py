"""Direct Consistency Models: a reproducible study (arXiv 2411.08954)."""
