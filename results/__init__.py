"""Records, their store, statistics, verdicts and tables: what was measured and how sure it is.

Never imports torch.
"""
