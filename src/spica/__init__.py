"""Spica: a detector proposes boxes, a person corrects them in Label Studio."""

__version__ = "0.1.0"
