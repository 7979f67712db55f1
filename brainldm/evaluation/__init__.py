"""Measures of generated brains: what they show, how varied they are, and the report that says so."""
