"""Chapter 5 as files that LaTeX takes: numbers, designed tables, sentences, and what makes the run repeatable."""
