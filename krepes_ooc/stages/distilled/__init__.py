"""Stage distilled: coefficients that reproduce the network's embedding, influence -> distilled."""
