"""Training a network: the recipe as data, the loop, and its parts."""
