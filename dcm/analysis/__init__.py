"""From measured rows to statements."""
