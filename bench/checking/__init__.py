"""Two trees against each other: did a change make anything slower, bigger or wrong."""
