"""Plans as rows of numbers: which there are, and how thousands are held at once."""
