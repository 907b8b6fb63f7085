"""Quantizers: how a tensor meets its candidate precisions."""
