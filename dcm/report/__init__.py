"""Pages of results: figures, tables and sentences, each with where it came from."""
