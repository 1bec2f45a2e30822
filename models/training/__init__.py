"""Training a network: the recipe as data, one loop, and what the loop is made of."""
