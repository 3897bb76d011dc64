"""Which plan wins, and which is taken when none is given."""
