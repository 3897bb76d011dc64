"""Numerics: formats, roundings, exact tile sums, quantised arrays, elementary functions."""
