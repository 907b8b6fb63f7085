"""Architectures of published networks as layer tables, written from their papers."""
