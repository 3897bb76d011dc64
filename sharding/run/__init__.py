"""Values on the chips of a plan: loading, running, generating, saving. No time, no reference."""
