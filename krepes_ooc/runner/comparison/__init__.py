"""Comparison of finished audits."""
