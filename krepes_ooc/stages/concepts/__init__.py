"""Stage concepts: concept activation vectors and their scores, influence -> concepts."""
