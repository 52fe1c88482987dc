"""The studies: which teacher, data, students and metrics belong together."""
