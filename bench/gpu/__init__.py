"""What a GPU host is asked: `make gpu`, in parts, and the table made of their files."""
