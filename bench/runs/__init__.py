"""Training runs and studies, from the command line to the folder they leave."""
