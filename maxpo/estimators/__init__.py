"""Advantage estimators, the statistics behind them, and K."""
