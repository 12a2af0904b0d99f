"""Experiment, optimiser, mesh, step, checkpoint and the loop."""
