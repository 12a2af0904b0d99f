"""Rooms, receivers, directions, words for them, and rendering; NumPy only."""
