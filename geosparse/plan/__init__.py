"""Decide: a Profile and a budget become a Plan."""
