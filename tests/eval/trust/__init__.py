"""Mirrors eval/trust."""
