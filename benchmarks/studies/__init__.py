"""Measurements of one question each."""
