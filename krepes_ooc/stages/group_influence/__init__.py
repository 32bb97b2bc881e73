"""Stage group_influence: the embedding without one group, re-solved from moments."""
