"""Parameters of notebooks and studies, checked before any work."""
