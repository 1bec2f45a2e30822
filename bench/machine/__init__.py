"""The machine a number comes from."""
