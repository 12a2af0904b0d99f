"""What is measured, as pure NumPy functions."""
