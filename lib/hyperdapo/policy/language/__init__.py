"""What a language model is for: the same states in other words, and whether its probabilities are true."""
