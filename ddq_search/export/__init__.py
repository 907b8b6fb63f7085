"""Exporters: one module per format, each the only door to the libraries of that format."""
