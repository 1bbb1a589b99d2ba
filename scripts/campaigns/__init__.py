"""The campaigns of `scripts/campaign.py`, on the tests' tiny models: parts of a checkout, not of the package."""
