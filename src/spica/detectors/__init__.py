"""Detectors: the contract, and one adapter a framework."""
