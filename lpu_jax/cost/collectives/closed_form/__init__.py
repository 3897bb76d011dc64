"""What formulas over many plans are made of, and those of `flat3`; entry: `links`."""
