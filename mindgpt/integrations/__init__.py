"""Doors to other people's programs, each of which needs an extra of its own."""
