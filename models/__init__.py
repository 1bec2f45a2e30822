"""Everything done to a network: the zoo and its networks, preparation, training, evaluation, prediction."""
