"""Which plan is best: branch and bound over the whole space, with bounds that are proven."""
