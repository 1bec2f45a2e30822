"""What is timed, the clock, and sides taking turns."""
