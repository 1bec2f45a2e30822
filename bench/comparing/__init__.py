"""Things of one tree side by side: what is compared, in which order, and what follows."""
