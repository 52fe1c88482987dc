"""Figures drawn from measured tables."""
