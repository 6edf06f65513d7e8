"""The policy: states as text, rewards, preference pairs, models, training and decisions."""
