"""Sample quality: what is measured, and by which features."""
