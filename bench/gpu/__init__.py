"""`make gpu`: a GPU host measured in parts that each leave files, and the table made from them."""
