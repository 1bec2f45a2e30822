"""Networks and what is done to them: preparation, training, evaluation, prediction, export."""
