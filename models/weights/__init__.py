"""Where parameter values come from: Hugging Face tensors, GGUF files, or a seeded generator."""
