"""The steps of each collective algorithm as formulas over many plans; entry: `cost.links`."""
