"""The two files that a person can read, Profile and Plan, and the cross-head interaction in the first."""
