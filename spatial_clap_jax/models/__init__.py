"""Encoders as Flax Linen modules."""
