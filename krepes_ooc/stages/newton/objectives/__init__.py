"""The SSL losses: value, gradient and Gauss-Newton products of each."""
