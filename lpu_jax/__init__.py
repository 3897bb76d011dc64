"""The machine: an LPU chip, its units, its links and what they cost."""
