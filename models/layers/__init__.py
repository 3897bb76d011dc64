"""Transformer layers as per-chip programs of datapath operations."""
