"""The values of plans beside float32, and beside one another."""
