"""The algorithms of collectives, a row each; entry: `algorithms.table`."""
