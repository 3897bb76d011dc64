"""The functional units: each file holds what a unit computes and what it costs."""
