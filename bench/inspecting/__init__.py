"""What a step costs and computes: counted, traced and compared."""
