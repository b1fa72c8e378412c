"""Doors for scripts that were written for other toolkits: the same calls, exact features behind them."""
