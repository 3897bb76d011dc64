"""Transformers for the emulated machine: configurations, parameters, weights, layers."""
