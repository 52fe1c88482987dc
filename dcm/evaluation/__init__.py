"""Measuring students against the teacher from the same noise."""
