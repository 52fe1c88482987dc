"""Distilling a group of students to its end, interrupted or not."""
