"""Choosing coefficients: sweeps over candidates, and descent on a loss."""
