"""What was known at an instant: messages as columns, the grid, the book, the 15 features (§2.1, §3.2.2, §4.2.2)."""
