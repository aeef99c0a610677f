"""Numerical kernels that steps share: selection, random bits, Gram matrices, linear algebra."""
