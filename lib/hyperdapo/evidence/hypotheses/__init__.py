"""What the thesis claims, and how it is tested: registered hypotheses, paired series, intervals, the ledger."""
